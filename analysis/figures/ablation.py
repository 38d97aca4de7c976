"""Beyond the paper: which part of Llumnix buys what, and how today's routers compare, all relative to full Llumnix.

A relative value is the ratio of a run to the run of full Llumnix that got the same requests at the same times; means
and intervals are over such pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from analysis import load, panels
from analysis.style import GREY, PALETTE

EXPERIMENT = "ablation"
VARIED = ["high_priority_fraction"]
FULL = "Llumnix"
PARTS = ["No defrag", "No headroom", "One stage", "Replay", "No migration", "Fresh reports"]
ROUTERS = ["INFaaS++", "Least KV", "Least requests", "Power of two", "Round-Robin"]
SERIES = [*PARTS, *ROUTERS]
PLAIN = {
    "Request Mean": "request_latency_mean_s",
    "Request P99": "request_latency_p99_s",
    "TTFT Mean": "ttft_mean_s",
    "TTFT P99": "ttft_p99_s",
    "TPOT P99": "decode_latency_p99_s",
    "SLO attainment": "slo_attainment",
}
WITH_CLASSES = {
    "High: Request Mean": "high_request_latency_mean_s",
    "High: TTFT P99": "high_ttft_p99_s",
    "High: TPOT Mean": "high_decode_latency_mean_s",
    "Normal: Request Mean": "normal_request_latency_mean_s",
    "Normal: TTFT P99": "normal_ttft_p99_s",
    "SLO attainment": "slo_attainment",
}
"""Column of the figure -> key of summary.json, for rows without and with high-priority requests."""
RELATIVE = " / Llumnix"
FACTOR = 3.0
"""From this ratio on the table prints ratios, below it changes in percent."""
COLOURS = [PALETTE[1], PALETTE[0], PALETTE[3]]
MARKERS = ["o", "s", "D"]


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per point and run: each metric as it is, and relative to full Llumnix where that has run."""
    rows = []
    for record in runs.to_dict("records"):
        run = {str(key): value for key, value in record.items()}
        if run["config.scheduler.label"] == "No headroom" and not run["high_priority_fraction"]:
            continue  # without high-priority requests there is none to leave out
        row, metrics = _row(run)
        rows += [
            {
                "figure": EXPERIMENT,
                "row": row,
                "metric": metric,
                "series": run["config.scheduler.label"],
                "x_name": "request_rate",
                "x": float(run["qps"]),
                "value": run[key],
                "unit": "s" if key.endswith("_s") else "share",
                "replicate": load.replicate(run),
            }
            for metric, key in metrics.items()
            if key in run and pd.notna(run[key])
        ]
    absolute = pd.DataFrame(rows)
    pairs = ["row", "metric", "x", "replicate"]
    full = absolute[absolute["series"] == FULL].set_index(pairs)["value"].rename("full")
    relative = absolute[absolute["series"] != FULL].join(full, on=pairs, how="inner")
    relative = relative[relative["full"] > 0]
    relative = relative.assign(
        metric=relative["metric"] + RELATIVE, value=relative["value"] / relative["full"], unit="ratio"
    )
    order = ["row", "metric", "series", "x", "replicate"]
    both = pd.concat([absolute, relative.drop(columns="full")])
    return both.sort_values(order, kind="stable", ignore_index=True)


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """A row of panels per trace and priority mix; in each a line per variant and a marker per rate."""
    rows = _rows(points)
    rates = sorted(points["x"].unique())
    figure = Figure(figsize=(17.0, 1.2 + 3.5 * len(rows)))
    axes = figure.subplots(len(rows), len(PLAIN), squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        series = [name for name in SERIES if ((points["row"] == row) & (points["series"] == name)).any()]
        for metric, ax in zip(_metrics(row), line, strict=True):
            here = points[(points["row"] == row) & (points["metric"] == metric + RELATIVE)]
            _panel(ax, here, series, rates)
            ax.set_title(metric)
        line[0].set_yticks(range(len(series)), series)
        remark = "synthetic lengths" if row.partition(",")[0] in synthetic else ""
        for text, x, settings in ((row, -0.88, {"weight": "bold", "size": 12.5}), (remark, -0.74, {"size": 9.5})):
            line[0].text(x, 0.5, text, transform=line[0].transAxes, rotation=90, ha="center", va="center", **settings)
    for ax in axes[-1]:
        ax.set_xlabel("relative to full Llumnix")
    handles = [
        Line2D([], [], ls="", marker=MARKERS[i % 3], color=COLOURS[i % 3], label=f"{rate:g} requests/s")
        for i, rate in enumerate(rates)
    ]
    if interval := panels.interval_label(points):
        handles.append(Line2D([], [], color=GREY, lw=1.2, label=interval))
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(
        left=0.13, right=0.99, bottom=0.55 / height, top=1 - 0.95 / height, wspace=0.13, hspace=1.1 / len(rows)
    )
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.55, 1.0), ncol=len(handles))
    return figure


def report(points: pd.DataFrame, notes: Sequence[str]) -> str:
    """The relative changes as text: a table per row of the figure and rate, one line per variant."""
    lines = ["Relative change against full Llumnix, [95 % interval over repeats]", "", *notes, *([""] if notes else [])]
    for row in _rows(points):
        for rate in sorted(points["x"].unique()):
            here = points[(points["row"] == row) & (points["x"] == rate)]
            lines += [f"{row}, {rate:g} requests/s", "", *_table(here, _metrics(row)), ""]
    return "\n".join(
        [*lines, "First line of each table: full Llumnix itself. What each variant is: docs/schedulers.md.", ""]
    )


def _table(here: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    cells = {(series, metric): point for (series, metric), point in here.groupby(["series", "metric"])}
    table = [["", *metrics]]
    table.append([FULL, *(_absolute(cells.get((FULL, metric))) for metric in metrics)])
    for series in SERIES:
        found = [cells.get((series, metric + RELATIVE)) for metric in metrics]
        if any(point is not None for point in found):
            table.append([series, *(_change(point) for point in found)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in table]
    text = [f"| {' | '.join(line)} |" for line in padded]
    return [text[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *text[1:]]


def _absolute(point: pd.DataFrame | None) -> str:
    if point is None:
        return "-"
    value, unit = point[["value", "unit"]].iloc[0]
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:.3g} s"


def _change(point: pd.DataFrame | None) -> str:
    if point is None:
        return "-"
    ratio, low, high = point[["value", "ci_low", "ci_high"]].clip(lower=0).iloc[0]  # no time is below 0
    if ratio >= FACTOR:
        return f"{ratio:.3g}x" + ("" if pd.isna(low) else f" [{low:.3g}, {high:.3g}]")
    change = [100 * (number - 1) for number in (ratio, low, high)]
    return f"{change[0]:+.1f} %" + ("" if pd.isna(low) else f" [{change[1]:+.1f}, {change[2]:+.1f}]")


def _panel(ax: Axes, here: pd.DataFrame, series: Sequence[str], rates: Sequence[float]) -> None:
    for i, rate in enumerate(rates):
        at = here[here["x"] == rate]
        y = at["series"].map(list(series).index).astype(float) + 0.2 * (i - (len(rates) - 1) / 2)
        colour = COLOURS[i % 3]
        low = at["ci_low"].clip(lower=at["value"] / 4)  # an interval that reaches 0 has no end on a log axis
        ax.hlines(y, low, at["ci_high"], color=colour, lw=1.2, alpha=0.6)
        ax.plot(at["value"], y, ls="", marker=MARKERS[i % 3], color=colour, ms=5, mew=0)
    ax.axvline(1, color=GREY, lw=1)
    parts = sum(name in PARTS for name in series)
    ax.axhline(parts - 0.5, color=GREY, lw=0.6, ls=":")
    ax.set_xscale("log")
    ax.set_ylim(len(series) - 0.4, -0.6)
    ax.set_yticks(range(len(series)), [""] * len(series))
    ax.grid(visible=False, axis="y")
    lowest, highest = min([0.9, *here["value"]]) / 1.15, max([1.12, *here["value"]]) * 1.15
    ax.set_xlim(lowest, highest)
    _number_axis(ax, lowest, highest)


def _number_axis(ax: Axes, low: float, high: float) -> None:
    """Ticks at round ratios: 1, 2, 5 of each decade where the axis spans much, even steps where it spans little."""
    if high / low > 4:
        ticks = [step * 10.0**power for power in range(-3, 5) for step in (1, 2, 5)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) > 6:
            ticks = [tick for tick in ticks if f"{tick:e}"[0] == "1"]
    else:
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _row(run: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    share = float(str(run["high_priority_fraction"]))
    label = str(run["config.trace.label"])
    return (f"{label}, {100 * share:.0f} % high priority", WITH_CLASSES) if share else (label, PLAIN)


def _rows(points: pd.DataFrame) -> list[str]:
    return sorted(
        points["row"].unique(), key=lambda row: ("," in row, row != "M-M" and not row.startswith("M-M,"), row)
    )


def _metrics(row: str) -> list[str]:
    return list(WITH_CLASSES if "," in row else PLAIN)
