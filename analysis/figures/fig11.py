"""Figure 11 (§6.3): serving performance, seven traces by seven metrics, against the request rate."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import panels
from analysis.points import missing

EXPERIMENT = "fig11"
X_NAME = "request_rate"
ROWS = ["ShareGPT", "BurstGPT", "S-S", "M-M", "L-L", "S-L", "L-S"]
METRICS = {
    "Request P99": "request_latency_p99_s",
    "Request Mean": "request_latency_mean_s",
    "Prefill P99": "prefill_latency_p99_s",
    "Prefill Mean": "prefill_latency_mean_s",
    "Decode P99": "decode_latency_p99_s",
    "Decode Mean": "decode_latency_mean_s",
    "Preemption Loss": "preemption_loss_mean_s",
}
"""Column of the figure -> key of summary.json."""


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per panel point and run, in the order of the panels: analysis.points.KEY, value, unit, replicate."""
    known = runs[runs["config.trace.label"].isin(ROWS)]
    frame = pd.DataFrame(
        {
            "figure": EXPERIMENT,
            "row": known["config.trace.label"],
            "series": known["config.scheduler.label"],
            "x_name": X_NAME,
            "x": known["qps"].astype(float),
            "unit": "s",
            "replicate": known["seed"].astype(str) + "." + known["repeat"].astype(str),
            **{metric: known[key] if key in known else float("nan") for metric, key in METRICS.items()},
        }
    )
    long = frame.melt(id_vars=[c for c in frame.columns if c not in METRICS], var_name="metric").dropna(subset="value")
    order = long.assign(row=long["row"].map(ROWS.index), metric=long["metric"].map(list(METRICS).index))
    return long.loc[order.sort_values(["row", "metric", "series", "x", "replicate"]).index].reset_index(drop=True)


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """The grid of panels. Rows in `synthetic` say that their lengths come from a generator."""
    figure = Figure(figsize=(17.5, 14.0))
    axes = figure.subplots(len(ROWS), len(METRICS))
    gaps = missing(points, paper)
    for row, line in zip(ROWS, axes, strict=True):
        absent = _absent(row, points, gaps)
        for metric, ax in zip(METRICS, line, strict=True):
            ours, theirs = (t[(t["row"] == row) & (t["metric"] == metric)] for t in (points, paper))
            panels.draw(ax, ours, theirs, absent)
        line[0].set_ylabel("Latency (s)")
        panels.name_row(line[0], row, "synthetic lengths" if row in synthetic else "")
    for metric, ax in zip(METRICS, axes[0], strict=True):
        ax.set_title(metric)
    for ax in axes[-1]:
        ax.set_xlabel("Request rate (requests/s)")
    figure.subplots_adjust(left=0.075, right=0.995, bottom=0.04, top=0.935, wspace=0.29, hspace=0.33)
    figure.align_ylabels(axes[:, 0])
    drawn = {*points["series"], *paper["series"]}
    handles = panels.legend_handles(sorted(drawn), panels.interval_label(points))
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.535, 0.995), ncol=len(handles))
    return figure


def _absent(row: str, points: pd.DataFrame, gaps: dict[tuple[str, str], list[float]]) -> list[str]:
    """What a row lacks, in lines short enough for a panel."""
    ran = {*points.loc[points["row"] == row, "series"]}
    of_row = {series: xs for (name, series), xs in gaps.items() if name == row}
    never = [series for series in of_row if series not in ran]
    partly = [
        f"{series} not at {', '.join(f'{x:g}' for x in xs)}" if len(xs) < 3 else f"{series} not at {len(xs)} rates"
        for series, xs in of_row.items()
        if series in ran
    ]
    return [*([f"not run: {', '.join(never)}"] if never else []), *partly]
