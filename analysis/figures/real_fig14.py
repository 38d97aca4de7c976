"""Figure 14's scale-down on real engines (§6.5): how long a drain takes, by migration or by waiting, and what it costs.

Beside it the simulator's prediction of the same requests. Whom a scheduler drains is its choice in either world.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import beside, load
from analysis.figures import validation
from analysis.style import GREY, PALETTE

EXPERIMENT = validation.EXPERIMENT
VARIED = validation.VARIED
DRAIN = "Drain Time"
SUMMARY = {"Resource Cost": "instance_s", "Request P99": "request_latency_p99_s", "Migrations": "migrations"}
UNITS = {DRAIN: "s", "Resource Cost": "instance-seconds", "Request P99": "s", "Migrations": "count"}
WIDTH = 0.38
LOOKS: list[tuple[str, float, dict[str, Any]]] = [
    ("", -WIDTH / 2, {}),
    (beside.SIMULATED, WIDTH / 2, {"hatch": "///", "alpha": 0.55}),
]
"""Ending of the series of each world, place of its bars beside the tick, and how they look."""


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows per scheduler, world and metric, of the runs that scaled and drained an instance; x is the rate."""
    scaled = runs[runs["config.scheduler.scaling.enabled"].astype(bool)]
    rows = [row for run in load.rows(scaled.assign(system=beside.system(runs))) for row in _of_run(run)]
    columns = ["row", "series", "x", "replicate", "metric", "value"]
    found = pd.DataFrame(rows, columns=columns).assign(figure="real_fig14", x_name="request_rate")
    found["unit"] = found["metric"].map(UNITS)
    return found.sort_values(["row", "metric", "series", "x"], kind="stable", ignore_index=True)


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """A panel per metric with a pair of bars per scheduler: real, and hatched the simulated."""
    schedulers = list(dict.fromkeys(points["series"].str.removesuffix(beside.SIMULATED)))
    figure = Figure(figsize=(13.0, 3.6), layout="constrained")
    for (metric, unit), ax in zip(UNITS.items(), figure.subplots(1, len(UNITS)), strict=True):
        here = points[points["metric"] == metric].groupby("series")["value"].mean()
        for world, shift, look in LOOKS:
            heights = [here.get(name + world, np.nan) for name in schedulers]
            ax.bar(np.arange(len(schedulers)) + shift, heights, WIDTH, color=PALETTE[: len(schedulers)], **look)
        ax.set_xticks(range(len(schedulers)), schedulers)
        ax.set(title=metric, ylabel=unit)
    figure.supxlabel("left real engines, right (hatched) simulated", fontsize=10, color=GREY)
    return figure


def _of_run(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    events = load.table(run["directory"], "events")
    begun = events[(events["kind"] == "drain") & (events["detail"] == "begun")]["time_s"]
    ended = events[events["kind"] == "instance_down"]["time_s"]
    if begun.empty or ended.empty:
        return
    simulated = beside.SIMULATED if run["config.engine.name"] == "sim" else ""
    known = {
        "row": f"{run['config.trace.label']}, {run['system']}",
        "series": run["config.scheduler.label"] + simulated,
        "x": float(run["qps"]),
        "replicate": load.replicate(run),
    }
    yield known | {"metric": DRAIN, "value": float(ended.iloc[0] - begun.iloc[0])}
    for metric, key in SUMMARY.items():
        yield known | {"metric": metric, "value": float(run[key])}
