"""Figure 12 (§6.3): fragmented memory as a share of the cluster's, M-M on 16 instances, with and without migration.

The paper does not name its request rate; the course is shown at the middle one of Figure 11's, the means at all five.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import load, panels
from analysis.fragmentation import blocked_heads, over_time
from analysis.style import GREY, SERIES

EXPERIMENT = "fig12"
SHOWN_RATE = 7.6
PAPER_MEAN = {"INFaaS++": 0.079, "Llumnix": 0.007}
EVERY_S = 2.0
"""The lines show one sample in so many seconds; the means are of all samples."""


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """The mean over time of each run; the course of the first run of each series at one rate."""
    known = runs[runs["config.scheduler.label"].isin(SERIES)]
    rows = [_mean(run) for run in load.rows(known)]
    for _, of_series in known[known["qps"] == SHOWN_RATE].groupby("config.scheduler.label"):
        rows += _course(load.first_run(of_series))
    return pd.DataFrame(rows).assign(figure=EXPERIMENT, row="M-M", unit="share").sort_values(
        ["metric", "series", "x"], kind="stable", ignore_index=True
    )  # fmt: skip


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """The course at one rate, and the means at all rates beside the paper's two averages."""
    figure = Figure(figsize=(14.0, 4.2), layout="constrained")
    course, means = figure.subplots(1, 2, width_ratios=(2.2, 1))
    lines = points[points["metric"] == "Fragmented"]
    for series, style in reversed(SERIES.items()):
        line = lines[lines["series"] == series]
        if len(line):
            course.fill_between(line["x"], 100 * line["value"], color=style.colour, alpha=0.3, lw=0)
            course.plot(line["x"], 100 * line["value"], color=style.colour, lw=1.0)
    course.set(xlabel="Time (s)", ylabel="Fragmented memory (%)", ylim=(0, None))
    course.set_title(f"M-M at {SHOWN_RATE} requests/s")
    course.margins(x=0.01)
    mean = points[points["metric"] == "Fragmented Mean"]
    percent = mean.assign(**{column: 100 * mean[column] for column in ("value", "ci_low", "ci_high")})
    panels.draw(means, percent, paper, [])
    for series, value in PAPER_MEAN.items():
        means.axhline(100 * value, color=SERIES[series].colour, lw=1, ls=":")
        means.text(0.01, 100 * value, f"paper {100 * value:.1f} %", transform=means.get_yaxis_transform(), va="bottom",
                   color=GREY, fontsize=9)  # fmt: skip
    means.set(title="Mean over time", xlabel="Request rate (requests/s)", ylabel="Fragmented memory (%)")
    means.set_ylim(0, max(9.5, 110 * mean["value"].max()))
    handles = panels.legend_handles(sorted({*points["series"]}), panels.interval_label(mean))[:-1]
    course.legend(
        handles=handles, loc="upper left", ncol=3, fontsize=10, frameon=True, framealpha=0.85, edgecolor="none"
    )
    return figure


def _mean(run: dict[str, Any]) -> dict[str, Any]:
    instants = over_time(blocked_heads(run))
    return {
        "metric": "Fragmented Mean",
        "series": run["config.scheduler.label"],
        "x_name": "request_rate",
        "x": float(run["qps"]),
        "value": (instants["fragmented"] / instants["total"]).mean(),
        "replicate": load.replicate(run),
    }


def _course(run: dict[str, Any]) -> list[dict[str, Any]]:
    heads = blocked_heads(run)
    instants = over_time(heads[heads["time_s"] % EVERY_S == 0])
    at = {"metric": "Fragmented", "series": run["config.scheduler.label"], "x_name": "time_s", "replicate": ""}
    shares = instants["fragmented"] / instants["total"]
    return [{**at, "x": time_s, "value": share} for time_s, share in zip(instants["time_s"], shares, strict=True)]
