"""Figure 15 (§6.5): the number of instances that a P99 prefill latency takes, over five scaling thresholds.

Beside its points, two readings of "36 % cost saving at similar P99": at one and the same P99 (interpolated between
thresholds), and as the figure's label was computed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import panels
from analysis.style import GREY, SERIES

EXPERIMENT = "fig15"
LOW = "scheduler.scaling.low_blocks"
VARIED = [LOW]
ROW = "Gamma 2.0 CV 2"
COST, TAIL = "Resource Cost", "Prefill P99"
KEYS = {COST: ("instances_step_weighted_mean", "instances"), TAIL: ("prefill_latency_p99_s", "s")}
TIME_COST = ("Resource Cost (time)", "instances_mean", "instances")
OWN, BASELINE = "Llumnix", "INFaaS++"
LEVEL_S = 4.5
"""The P99 prefill latency at which the paper draws its line."""
LABELLED = {OWN: 5.0, BASELINE: 65.0}
"""The thresholds of the two points whose costs the paper's label divides."""
SAVING, AS_LABELLED = "Saving at 4.5 s", "Saving as labelled"


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per threshold, quantity and run, then the two readings of the saving for each replicate."""
    known = runs[runs["config.scheduler.label"].isin([OWN, BASELINE])]
    common = pd.DataFrame(
        {
            "figure": EXPERIMENT,
            "row": ROW,
            "series": known["config.scheduler.label"],
            "x_name": "scale_up_threshold",
            "x": known[f"config.{LOW}"].astype(float),
            "replicate": known["seed"].astype(str) + "." + known["repeat"].astype(str),
        }
    )
    wanted = [*((metric, *of) for metric, of in KEYS.items()), TIME_COST]
    parts = [common.assign(metric=metric, value=known[key], unit=unit) for metric, key, unit in wanted if key in known]
    points = pd.concat(parts).sort_values(["metric", "series", "x", "replicate"], kind="stable", ignore_index=True)
    readings = pd.DataFrame(_readings(points)).assign(figure=EXPERIMENT, row=ROW, unit="share", series=OWN)
    return pd.concat([points, readings], ignore_index=True) if len(readings) else points


def _readings(points: pd.DataFrame) -> Iterator[dict[str, object]]:
    for replicate, of_run in points.groupby("replicate"):
        wide = of_run.pivot_table(index=["series", "x"], columns="metric", values="value")
        if not {OWN, BASELINE} <= {*wide.index.get_level_values("series")}:
            continue
        at = {"x_name": "p99_s", "x": LEVEL_S, "replicate": replicate}
        own, baseline = (cost_at(wide.loc[[series]], LEVEL_S) for series in (OWN, BASELINE))
        if own is not None and baseline is not None:
            yield {**at, "metric": SAVING, "value": 1 - own / baseline}
        pair = list(LABELLED.items())
        if all(key in wide.index for key in pair):
            own, baseline = (wide[COST].to_dict()[key] for key in pair)
            yield {**at, "metric": AS_LABELLED, "value": baseline / own - 1}


def cost_at(curve: pd.DataFrame, level_s: float) -> float | None:
    """The cost at which a P99 of `level_s` is first reached, on the line through the points of rising cost.

    `curve` has a row per point; None if they do not reach from above the level to below it.
    """
    line = curve.sort_values(COST)
    cost, tail = line[COST].to_numpy(), line[TAIL].to_numpy()
    for i in range(len(line) - 1):
        if tail[i] >= level_s >= tail[i + 1]:
            return float(np.interp(level_s, [tail[i + 1], tail[i]], [cost[i + 1], cost[i]]))
    return None


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """Cost against P99, a line per series, a label per threshold, and the saving where both reach the paper's line."""
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    ax = figure.subplots()
    for series, style in reversed(SERIES.items()):
        ours, theirs = (_curve(table, series) for table in (points, paper))
        if ours.empty and theirs.empty:
            continue
        ax.plot(ours[COST], ours[TAIL], color=style.colour, ls=style.line, marker=style.marker, mew=0, zorder=4)
        ax.errorbar(
            ours[COST], ours[TAIL], ours[f"{TAIL} half"], ours[f"{COST} half"], fmt="none", ecolor=style.colour,
            elinewidth=1.0, capsize=2.2, alpha=0.6, zorder=2,
        )  # fmt: skip
        ax.plot(theirs[COST], theirs[TAIL], ls="", marker=style.marker, mfc="none", mec=style.colour, ms=7.5, zorder=3)
        offset = (-7, -15) if series == OWN else (4, 5)  # the line of the level is above our points
        for threshold, point in ours.iterrows():
            ax.annotate(f"{threshold:g}", (point[COST], point[TAIL]), offset, textcoords="offset points", color=GREY)
    _line(ax, points)
    ax.set(xlabel="Average number of instances (mean over steps)", ylabel="P99 prefill latency (s)")
    ax.set_ylim(0, 1.1 * max([*_of(points, TAIL), *_of(paper, TAIL)]))
    handles = panels.legend_handles(sorted({*points["series"], *paper["series"]}), panels.interval_label(points))
    ax.legend(handles=handles, loc="upper right", title="Labels: lower bound of freeness x (blocks)", fontsize=10)
    return figure


def _line(ax: Axes, points: pd.DataFrame) -> None:
    ax.axhline(LEVEL_S, color="tab:red", ls=(0, (4, 3)), lw=1.0, zorder=1)
    saving = points[points["metric"] == SAVING]["value"]
    if len(saving):
        text = f"{100 * saving.iloc[0]:.0f} % fewer instances at {LEVEL_S} s"
        ax.text(0.35, LEVEL_S, text, transform=ax.get_yaxis_transform(), color="tab:red", va="bottom", fontsize=9.5)


def _of(points: pd.DataFrame, metric: str) -> pd.Series:
    return points.loc[points["metric"] == metric, "value"]


def _curve(points: pd.DataFrame, series: str) -> pd.DataFrame:
    """Threshold -> cost and P99, and half their intervals where there are any."""
    of_series = points[(points["series"] == series) & points["metric"].isin([COST, TAIL])]
    wide = of_series.pivot_table(index="x", columns="metric", values="value").reindex(columns=[COST, TAIL])
    for metric in (COST, TAIL):
        of_metric = of_series[of_series["metric"] == metric].set_index("x")
        high = of_metric["ci_high"] if "ci_high" in of_metric else of_metric["value"]
        wide[f"{metric} half"] = high - of_metric["value"]
    return wide.sort_values(COST)
