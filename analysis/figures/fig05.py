"""Figure 5 (§3): free memory of four instances over time, and what the blocked heads of their queues need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import load
from analysis.fragmentation import blocked_heads, over_time
from analysis.style import GREY, PALETTE

EXPERIMENT = "fig05"
ALL = "all instances"
EVERY_S = 5.0
"""The lines show one sample in so many seconds; the numbers are of all samples."""


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """The share of instants with enough memory, of each run; the course over time of the first run."""
    rows = [row for run in load.rows(runs) for row in _enough(run)]
    rows += _course(load.first_run(runs))
    return pd.DataFrame(rows).assign(figure=EXPERIMENT, row="M-M")


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """Above, the free memory of each instance; below, of all of them, and the demand."""
    figure = Figure(figsize=(13.0, 6.0), layout="constrained")
    each, together = figure.subplots(2, 1, sharex=True)
    free = points[points["metric"] == "Free Blocks"]
    for (name, line), colour in zip(free[free["series"] != ALL].groupby("series"), PALETTE, strict=False):
        each.plot(line["x"], line["value"], color=colour, lw=1.1, label=name)
    total = free[free["series"] == ALL]
    demand = points[points["metric"] == "Blocked Demand"]
    together.plot(total["x"], total["value"], color="black", lw=1.3, label="free on all instances together")
    together.fill_between(
        demand["x"],
        demand["value"],
        step="post",
        color=PALETTE[3],
        alpha=0.75,
        lw=0,
        label="needed by blocked heads of line",
    )
    share = points.loc[points["metric"] == "Enough While Blocked", "value"].iloc[0]
    together.set_title(f"Enough for all blocked heads in {100 * share:.0f} % of the instants at which any is blocked")
    each.set_title("Free memory of each instance")
    together.set_xlabel("Time (s)")
    for ax in (each, together):
        ax.set(ylabel="KV blocks", ylim=(0, None))
        ax.margins(x=0.01)
        ax.legend(loc="upper right", ncol=4, fontsize=10, frameon=True, framealpha=0.85, edgecolor="none")
    figure.text(0.995, 0.005, "INFaaS++ dispatch, no migration", ha="right", va="bottom", color=GREY, fontsize=9)
    return figure


def _enough(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    instants = over_time(blocked_heads(run))
    blocked = instants[instants["demand"] > 0]
    at = {"series": ALL, "x_name": "request_rate", "x": float(run["qps"]), "unit": "share"}
    at["replicate"] = load.replicate(run)
    yield {**at, "metric": "Enough While Blocked", "value": (blocked["free"] >= blocked["demand"]).mean()}
    yield {**at, "metric": "Time Blocked", "value": len(blocked) / len(instants)}


def _course(run: dict[str, Any]) -> list[dict[str, Any]]:
    heads = blocked_heads(run)
    heads = heads[heads["time_s"] % EVERY_S == 0]
    instants = over_time(heads)
    at = {"x_name": "time_s", "unit": "blocks", "replicate": ""}
    lines = [
        ("Free Blocks", f"instance {instance_id}", group["time_s"], group["free_blocks"])
        for instance_id, group in heads.groupby("instance_id")
    ]
    lines += [
        (m, ALL, instants["time_s"], instants[c]) for m, c in (("Free Blocks", "free"), ("Blocked Demand", "demand"))
    ]
    return [
        {**at, "metric": metric, "series": series, "x": time_s, "value": float(blocks)}
        for metric, series, times_s, values in lines
        for time_s, blocks in zip(times_s, values, strict=True)
    ]
