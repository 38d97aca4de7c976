"""Figures that are grids of panels: a row per setting, a column per metric, a line per series against one quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from analysis import panels
from analysis.points import missing

LATENCIES = {
    "Request P99": "request_latency_p99_s",
    "Request Mean": "request_latency_mean_s",
    "Prefill P99": "prefill_latency_p99_s",
    "Prefill Mean": "prefill_latency_mean_s",
    "Decode P99": "decode_latency_p99_s",
    "Decode Mean": "decode_latency_mean_s",
}
"""The six columns that the paper's grids have in common -> key of summary.json."""
KNOWN = ["figure", "row", "series", "x_name", "x", "replicate"]
Points = dict[tuple[str, str], list[float]]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a grid looks like; margins are those of Figure.subplots_adjust.

    `rows` gives the label of the x axis of each row, which is shown where the next row has another; `names` those rows
    whose name is not their own. `units` names the y axis of metrics that are not latencies in s, `hollow` what is drawn
    with hollow markers.
    """

    rows: Mapping[str, str]
    metrics: Sequence[str]
    size_in: tuple[float, float]
    margins: Mapping[str, float]
    names: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    hollow: str = "paper"


def samples(frame: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """One row per panel point and run, in the order of the panels: analysis.points.KEY, value, unit, replicate.

    `frame` has a row per run and row of the figure: KNOWN, and a column for each metric.
    """
    rows, metrics = list(layout.rows), list(layout.metrics)
    long = frame.melt(id_vars=KNOWN, value_vars=metrics, var_name="metric").dropna(subset="value")
    long["unit"] = [layout.units.get(metric, "s") for metric in long["metric"]]
    order = long.assign(row=long["row"].map(rows.index), metric=long["metric"].map(metrics.index))
    return long.loc[order.sort_values(["row", "metric", "series", "x", "replicate"]).index].reset_index(drop=True)


def draw(points: pd.DataFrame, paper: pd.DataFrame, layout: Layout, remarks: Mapping[str, str]) -> Figure:
    """The grid of panels, the paper's points hollow; `remarks` go under the names of rows."""
    figure = Figure(figsize=layout.size_in)
    axes = figure.subplots(len(layout.rows), len(layout.metrics), squeeze=False)
    gaps = missing(points, paper)
    names = list(layout.rows)
    for place, (row, line) in enumerate(zip(names, axes, strict=True)):
        absent = _absent(row, points, gaps)
        for metric, ax in zip(layout.metrics, line, strict=True):
            ours, theirs = (t[(t["row"] == row) & (t["metric"] == metric)] for t in (points, paper))
            panels.draw(ax, ours, theirs, absent)
            if metric in layout.units:
                ax.set_ylabel(layout.units[metric].capitalize())
            if row == names[-1] or layout.rows[row] != layout.rows[names[place + 1]]:
                ax.set_xlabel(layout.rows[row])
        line[0].set_ylabel("Latency (s)")
        panels.name_row(line[0], layout.names.get(row, row), remarks.get(row, ""))
    for metric, ax in zip(layout.metrics, axes[0], strict=True):
        ax.set_title(metric)
    figure.subplots_adjust(**layout.margins)
    figure.align_ylabels(axes[:, 0])
    drawn = {*points["series"], *paper["series"]}
    handles = panels.legend_handles(sorted(drawn), panels.interval_label(points), layout.hollow)
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.535, 0.995), ncol=len(handles))
    return figure


def _absent(row: str, points: pd.DataFrame, gaps: Points) -> list[str]:
    """What a row lacks, in lines short enough for a panel."""
    ran = {*points.loc[points["row"] == row, "series"]}
    of_row = {series: xs for (name, series), xs in gaps.items() if name == row}
    never = [series for series in of_row if series not in ran]
    partly = [
        f"{series} not at {', '.join(f'{x:g}' for x in xs)}" if len(xs) < 3 else f"{series} not at {len(xs)} points"
        for series, xs in of_row.items()
        if series in ran
    ]
    return [*([f"not run: {', '.join(never)}"] if never else []), *partly]
