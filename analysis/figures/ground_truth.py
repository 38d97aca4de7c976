"""Requests that a real engine has served, beside the same requests on the simulated engine with its profile.

Request latency, time to first token and time per output token as distributions, for every replay in
outputs/ground_truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.style import GREY, SERIES
from llumnix.ground_truth import METRICS, STATISTICS, compare, latencies

EXPERIMENT = "ground_truth"
FILE = "ground_truth.parquet"
HOW = "python -m runners.profile from=DIR kv_blocks=N, where DIR has requests.jsonl beside a profile"
PERCENTILE, STATISTIC = "percentile", "statistic"
SIDES = {"real": (GREY, "-"), "simulated": (SERIES["Llumnix"].colour, (0, (4, 1.5)))}


def read(outputs: Path) -> pd.DataFrame:
    """Percentiles and statistics of each replay, real and simulated, in seconds; empty if there is none."""
    files = sorted((outputs / EXPERIMENT).glob(f"*/{FILE}"))
    rows = [row for file in files for row in _rows(file.parent.name, pd.read_parquet(file))]
    return pd.DataFrame(rows).assign(figure=EXPERIMENT, unit="s", replicate="0") if rows else pd.DataFrame()


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """A row of panels per replay: which share of requests took at most so long."""
    names = list(points["row"].unique())
    figure = Figure(figsize=(14.0, 3.9 * len(names) + 0.3), layout="constrained")
    axes = figure.subplots(len(names), len(METRICS), squeeze=False)
    for name, line in zip(names, axes, strict=True):
        for metric, ax in zip(METRICS, line, strict=True):
            _draw_distribution(ax, points[(points["row"] == name) & (points["metric"] == metric)], METRICS[metric])
        line[0].set_ylabel(f"{name}\nfraction of requests")
    axes[0, 0].legend(loc="upper left")
    return figure


def report(points: pd.DataFrame, notes: Sequence[str]) -> str:
    """A table of errors per replay."""
    lines = ["Real and simulated requests, in seconds, and how far off the simulated ones are", *notes]
    for name in points["row"].unique():
        here = points[(points["row"] == name) & (points["x_name"] == STATISTIC)]
        lines += ["", f"{name:<24}{'':<24}{'real':>10}{'simulated':>12}{'error':>9}"]
        for metric, label in METRICS.items():
            for place, statistic in enumerate(STATISTICS):
                of_both = here[(here["metric"] == metric) & (here["x"] == place)].set_index("series")["value"]
                real, simulated = float(of_both["real"]), float(of_both["simulated"])
                what = f"  {label:<24}{statistic:<22}"
                lines.append(f"{what}{real:>10.4g}{simulated:>12.4g}{simulated / real - 1:>+9.1%}")
    return "\n".join([*lines, ""])


def _rows(name: str, replay: pd.DataFrame) -> Iterator[dict[str, Any]]:
    columns = {str(column): replay[column].to_numpy() for column in replay}
    for side in SIDES:
        for metric, times_s in latencies(columns, side).items():
            known = {"row": name, "metric": metric, "series": side}
            for level in range(101):
                value = float(np.percentile(times_s, level))
                yield known | {"x_name": PERCENTILE, "x": float(level), "value": value}
    for found in compare(columns):
        for side, value in (("real", found.real_s), ("simulated", found.simulated_s)):
            known = {"row": name, "metric": found.metric, "series": side}
            yield known | {"x_name": STATISTIC, "x": float(STATISTICS.index(found.statistic)), "value": value}


def _draw_distribution(ax: Axes, points: pd.DataFrame, label: str) -> None:
    curve, statistics = (points[points["x_name"] == x_name] for x_name in (PERCENTILE, STATISTIC))
    for side, (colour, dashes) in SIDES.items():
        of_side = curve[curve["series"] == side].sort_values("x")
        ax.plot(of_side["value"], of_side["x"] / 100, color=colour, linestyle=dashes, label=side)
    errors = []
    for place, statistic in enumerate(STATISTICS):
        value = statistics[statistics["x"] == place].set_index("series")["value"]
        errors.append(f"{statistic} {value['simulated'] / value['real'] - 1:+.1%}")
    ax.text(0.98, 0.04, "\n".join(errors), transform=ax.transAxes, ha="right", va="bottom", fontsize=10)
    ax.set(xlabel=f"{label} (s)", ylim=(0, 1.02))
    ax.set_xlim(left=0)
    ax.set_title(label[0].upper() + label[1:])
