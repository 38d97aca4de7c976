"""Figure 16 (§6.6): how long instances wait for scheduling after an iteration, as clusters and request rates grow.

Schedulers are programs whose processor time is measured; the model is replaced by a wait of the length of its step.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import load, panels
from analysis.style import GREY, PALETTE, SERIES

EXPERIMENT = "fig16"
VARIED = ["cluster.instances", "num_requests", "engine.scheduling"]
LABELS = {"per_instance": "Llumnix", "centralized": "Centralized"}
COLOURS = {"Llumnix": SERIES["Llumnix"].colour, "Centralized": PALETTE[0]}
MARKERS = "o^sDv"
METRICS = {
    "Stall Mean": ("scheduling_stall_mean_s", 1000.0, "ms"),
    "Stall P99": ("scheduling_stall_p99_s", 1000.0, "ms"),
    "Slowdown": ("iteration_slowdown", 1.0, "x"),
    "Scheduler Busy": ("scheduler_busy_share", 1.0, "share"),
    "Dispatch P99": ("dispatch_p99_s", 1000.0, "ms"),
}
"""Column of the figure -> key of summary.json, factor, unit."""
PAPER_INSTANCES = 64


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per metric and run: against instances for each rate of an instance, and at 64 against the whole rate."""
    rows = [row for run in load.rows(runs) for row in _of_run(run)]
    frame = pd.DataFrame(rows).assign(figure=EXPERIMENT)
    return frame.sort_values(["metric", "order", "series", "x"], ignore_index=True).drop(columns="order")


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """Stalls, slow-down of an iteration, wait for a dispatch and load of the scheduler, against the instances."""
    figure = Figure(figsize=(18, 4.6), layout="constrained")
    stall, slowdown, dispatch, busy = figure.subplots(1, 4)
    scaled = points[points["row"] != _at_64()]
    _lines(stall, scaled[scaled["metric"] == "Stall Mean"], 1)
    _lines(slowdown, scaled[scaled["metric"] == "Slowdown"], 1)
    _lines(dispatch, scaled[scaled["metric"] == "Dispatch P99"], 1)
    _lines(busy, scaled[scaled["metric"] == "Scheduler Busy"], 100)
    stall.set_yscale("log")
    stall.axhline(40, color=GREY, ls=":", lw=1)
    stall.text(
        0.02, 38, "paper, centralized, 64 instances: up to 40 ms", transform=stall.get_yaxis_transform(), va="top",
        color=GREY, fontsize=9,
    )  # fmt: skip
    stall.set(title="Stall after an iteration", ylabel="Mean stall (ms)")
    slowdown.set(title="Slow-down of an iteration", ylabel="(step + stall) / step", ylim=(0.9, None))
    dispatch.set_yscale("log")
    dispatch.set(title="From arrival to dispatch", ylabel="P99 (ms)")
    busy.set(title="Scheduler's process", ylabel="Processor busy (%)", ylim=(0, 105))
    rates = list(dict.fromkeys(scaled["row"]))
    handles = [Line2D([], [], color=COLOURS[name], label=name, lw=2) for name in COLOURS if name in {*scaled["series"]}]
    handles += [Line2D([], [], color=GREY, ls="", marker=m, label=r) for r, m in zip(rates, MARKERS, strict=False)]
    figure.legend(handles=handles, loc="outside upper center", ncol=len(handles), fontsize=10.5)
    if interval := panels.interval_label(scaled):
        figure.supxlabel(f"bars: {interval}", fontsize=9, color=GREY)
    return figure


def _at_64() -> str:
    return f"{PAPER_INSTANCES} instances"


def _of_run(run: dict[str, Any]) -> list[dict[str, Any]]:
    instances, rate = int(run["config.cluster.instances"]), float(run["qps"])
    each = rate / instances
    places = [(f"{each:g} requests/s per instance", "instances", float(instances), each)]
    if instances == PAPER_INSTANCES:
        places.append((_at_64(), "request_rate", rate, float("inf")))
    return [
        {
            "row": row,
            "metric": metric,
            "series": LABELS[run["config.engine.scheduling"]],
            "x_name": x_name,
            "x": x,
            "value": factor * run[key],
            "unit": unit,
            "replicate": load.replicate(run),
            "order": order,
        }
        for row, x_name, x, order in places
        for metric, (key, factor, unit) in METRICS.items()
    ]


def _lines(ax: Axes, points: pd.DataFrame, factor: float) -> None:
    markers = dict(zip(dict.fromkeys(points["row"]), MARKERS, strict=False))
    for keys, line in points.groupby(["row", "series"], sort=False):
        row, series = map(str, keys)
        half = factor * (line["ci_high"] - line["value"])
        ax.errorbar(
            line["x"],
            factor * line["value"],
            half,
            color=COLOURS[series],
            marker=markers[row],
            mew=0,
            capsize=2.2,
            elinewidth=1,
        )
    ax.set_xscale("log", base=2)
    ticks = sorted({*points["x"]})
    ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    ax.set_xlabel("Instances")
