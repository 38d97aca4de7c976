"""Beyond the paper: where moving requests pays, by how full the memory is and how many requests fit into it.

A map per system and length distribution. A point is the mean over pairs of runs (analysis.pairs) whose KV usage without
migration and whose room fall into one class; its value is log2 of without / with, 1 where migration halves the metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from analysis import beside, load, pairs
from analysis.style import GREY

EXPERIMENT = "payoff"
VARIED = ["cluster", "engine", "gpu", "model", "scheduler.load_reports"]
ANCHORS = {"validation": "vllm", "payoff_real": "sim"}
"""Experiment whose runs stand beside the map -> the engine that counts there: real runs, and the same simulated."""
METRICS = {
    "TTFT P99": "ttft_p99_s",
    "TPOT P99": "decode_latency_p99_s",
    "Request P99": "request_latency_p99_s",
    "Request Mean": "request_latency_mean_s",
}
PLACE = {"KV usage": "share", "Room": "requests", "Length CV": "ratio"}
"""Where the pairs of a class are, beside by how much it pays there -> unit."""
DRAWN, BESIDE = "TTFT P99", "Request Mean"
USAGES = [0.0, 0.4, 0.6, 0.7, 0.8, 0.9]
"""Lower ends of the classes of KV usage."""
OVERLOAD = 1.0
"""x of pairs whose queue grows without migration."""
GROWING = 0.05
"""If the mean wait for a first token is longer than this share of the run, the queue grows as long as requests come."""
SMALLEST_ROOM = 6.25
"""Rooms are put into classes that double: 6, 12, 25, ..."""
PRESENT = "dispatch sees the present"
VIEWS = {"completed_step": "dispatch sees the last step", "immediate": PRESENT}
REAL = "real engines"
UNIT = "log2 ratio"
PAYS = 1.25
"""Classes with a larger factor are those in which the table compares how much migration pays on other systems."""
MOST = 3.0
"""Colours end at 2 ** MOST."""
INK = "#595959"
Point = dict[str, Any]
"""A row of analysis.points.COLUMNS."""


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per pair and metric: row is the system, series trace and class of its room, x that of its usage.

    Classes are of means over the seeds of a rate, so that no seed chooses its class by how it went.
    """
    outputs = Path(runs["directory"].iloc[0]).parents[2]
    frame = pd.DataFrame([_of_pair(with_it, without) for with_it, without in pairs.of(_with_anchors(runs, outputs))])
    if frame.empty:
        return frame
    mean = frame.groupby(["row", "trace", "kv_blocks", "rate"])[["KV usage", "Room", "wait_share"]].transform("mean")
    frame["x"] = [
        OVERLOAD if wait > GROWING else max(low for low in USAGES if low <= usage)
        for usage, wait in zip(mean["KV usage"], mean["wait_share"], strict=True)
    ]
    frame["series"] = frame["trace"] + ", room " + mean["Room"].map(_room_class).astype(str)
    known = ["row", "series", "x", "replicate"]
    long = frame.melt(id_vars=known, value_vars=[*METRICS, *PLACE], var_name="metric")
    long = long.assign(figure=EXPERIMENT, x_name="kv_usage", unit=long["metric"].map(PLACE).fillna(UNIT))
    return long.sort_values(["row", "metric", "series", "x", "replicate"], kind="stable", ignore_index=True)


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """A row of maps per system, a column per length distribution; in each room against usage.

    A distribution that nothing but real pairs have is in the tables only: a column for a pair or two says less.
    """
    simulated = points[~points["row"].str.endswith(REAL)]
    traces = _traces(points if simulated.empty else simulated)
    systems = [system for system in _drawn(_systems(points)) if any(_rooms(points, system, trace) for trace in traces)]
    heights = [0.5 + 0.42 * max(len(_rooms(points, system, trace)) for trace in traces) for system in systems]
    figure = Figure(figsize=(1.2 + 4.3 * len(traces), 1.9 + 1.25 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(systems), len(traces), squeeze=False, gridspec_kw={"height_ratios": heights})
    colours = ScalarMappable(Normalize(-MOST, MOST), "RdBu")
    for system, line in zip(systems, axes, strict=True):
        for trace, ax in zip(traces, line, strict=True):
            rooms = _rooms(points, system, trace)
            if not rooms:
                ax.set_axis_off()
                continue
            _map(ax, _cells(points, system, trace), rooms, colours)
            ax.set_title(f"{trace} (CV of lengths {traces[trace]:.1f})\n{system}", fontsize=9)
    figure.supxlabel("KV memory in use without migration, mean", fontsize=11)
    figure.supylabel("Room: requests of mean length that fit into an instance", fontsize=11)
    bar = figure.colorbar(colours, ax=axes, location="top", fraction=0.03, aspect=60, extend="both", shrink=0.6)
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{2**value:.3g}x"))
    bar.set_label(
        f"large: {DRAWN} without / with migration, bold where its 95 % interval excludes 1x; small: {BESIDE}\n"
        "blue: migration pays; red: it costs; empty: not run, or never so full; overload: more arrives than is served",
        fontsize=10,
    )
    return figure


def report(points: pd.DataFrame, notes: Sequence[str]) -> str:
    """The maps as text: a table per metric, a line per system, trace and room, a column per class of usage."""
    lines = ["Without / with migration, [95 % interval over the pairs of runs in a class], n: pairs", "", *notes]
    for metric in METRICS:
        here = points[points["metric"] == metric]
        xs = sorted(here["x"].unique())
        table = [["system", "trace", "room", *(f"{_usage_name(x)} in use" if x < OVERLOAD else "overload" for x in xs)]]
        for system in _systems(points):
            for trace in _traces(points):
                cells = _cells(here, system, trace)
                for room in _rooms(here, system, trace):
                    table.append([system, trace, str(room), *(_factor(cells.get((room, x, metric))) for x in xs)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in table]
        text = [f"| {' | '.join(line)} |" for line in padded]
        lines += ["", metric, "", text[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *text[1:]]
    lines += ["", *_carried_over(points)]
    return "\n".join([*lines, "", "What room and usage are, and how to find yours: docs/when_migration_pays.md.", ""])


def _carried_over(points: pd.DataFrame) -> list[str]:
    """How far systems are from the largest map whose dispatch sees the same, in the classes that both have."""
    lines = []
    measured = points[(points["metric"] == DRAWN) & (points["n"] > 1)]
    by_system = {system: of.set_index(["series", "x"]) for system, of in measured.groupby("row")}
    largest: dict[str, str] = {}
    for system in (name for name in _systems(points) if name in by_system):
        how = system.rpartition(", ")[2]
        if largest.setdefault(how, system) == system:
            continue
        both = by_system[largest[how]].join(by_system[system].add_suffix("_other"), how="inner")
        if not both.empty:
            pays = both[["value", "value_other"]].max(axis="columns") > math.log2(PAYS)
            overlap = (both["ci_low"] <= both["ci_high_other"]) & (both["ci_low_other"] <= both["ci_high"])
            apart = 2 ** (both["value_other"] - both["value"]).abs()[pays]
            line = (
                f"{DRAWN}, {system} beside {largest[how]}: intervals overlap in {overlap.sum()} of {len(both)} classes"
            )
            if pays.any():
                line += (
                    f"; the {pays.sum()} where either has more than {PAYS:g}x are {apart.median():.2g}x apart in the"
                )
                line += f" median, {apart.max():.2g}x at most"
            lines.append(line + ".")
    return lines


def _with_anchors(runs: pd.DataFrame, outputs: Path) -> pd.DataFrame:
    """Runs with one class of requests, no made bursts and no scaling; anchors where they are kept."""
    found = [runs]
    for experiment, engine in ANCHORS.items():
        for place in (outputs, outputs / "reference"):
            anchors = load.runs(place, experiment)
            anchors = anchors[anchors["state"] == load.State.DONE]
            if not anchors.empty:
                found.append(anchors[anchors["config.engine.name"] == engine])
                break
    every = pd.concat(found, ignore_index=True)
    scaling = every.get("config.scheduler.scaling.enabled", pd.Series(False, index=every.index)).eq(True)
    steady = every["arrivals"].isin(["poisson", "recorded"])
    return every[steady & (every["high_priority_fraction"] == 0) & ~scaling]


def _of_pair(with_it: dict[str, Any], without: dict[str, Any]) -> dict[str, Any]:
    """Where a pair is, and log2 of how much migration gains there by each metric."""
    requests = pairs.requests(without)
    simulated = without["config.engine.name"] == "sim"
    how = VIEWS[without["config.scheduler.load_reports"]] if simulated else REAL
    return {
        "row": f"{_system(without)}, {how}",
        "trace": without["config.trace.label"] or Path(str(without["config.trace.path"])).stem,
        "kv_blocks": without["config.cluster.kv_blocks"],
        "rate": without["qps"],
        "replicate": f"{without['qps']:g}.{load.replicate(without)}",
        "KV usage": pairs.usage(without, requests),
        "Room": pairs.room(without, requests),
        "Length CV": pairs.length_cv(requests),
        "wait_share": pairs.wait_share(requests),
        **{metric: math.log2(without[key] / with_it[key]) for metric, key in METRICS.items()},
    }


def _system(run: dict[str, Any]) -> str:
    return f"{run['config.cluster.instances']:g} x {beside.gpu(run)}, {run['config.model.label']}"


def _room_class(room: float) -> int:
    return int(SMALLEST_ROOM * 2 ** max(0, round(math.log2(room / SMALLEST_ROOM))))


def _map(ax: Axes, cells: dict[tuple[int, float, str], Point], rooms: Sequence[int], colours: ScalarMappable) -> None:
    columns = [*USAGES, OVERLOAD]
    for y, room in enumerate(rooms):
        for x, usage in enumerate(columns):
            point = cells.get((room, usage, DRAWN))
            colour = "#f4f4f4" if point is None else colours.to_rgba(point["value"])
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=colour, ec="white", lw=1.5))
            if point is not None:
                _write(ax, x, y, point, cells.get((room, usage, BESIDE)))
    ax.axvline(len(USAGES) - 0.5, color=GREY, lw=1.2)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.set_ylim(-0.5, len(rooms) - 0.5)
    ax.set_xticks(range(len(columns)), [*map(_usage_name, USAGES), "overload"], fontsize=7.5)
    ax.set_yticks(range(len(rooms)), [str(room) for room in rooms])
    ax.grid(visible=False)


def _write(ax: Axes, x: int, y: int, point: Point, below: Point | None) -> None:
    certain = point["n"] > 1 and not point["ci_low"] <= 0 <= point["ci_high"]
    ink = "white" if abs(point["value"]) > 0.6 * MOST else INK if abs(point["value"]) < 0.5 and not certain else "black"
    weight = "bold" if certain else "normal"
    ax.text(x, y + 0.1, f"{2 ** point['value']:.2g}x", ha="center", va="center", fontsize=9, color=ink, weight=weight)
    if below is not None:
        ax.text(x, y - 0.3, f"{2 ** below['value']:.2f}x", ha="center", va="center", fontsize=6.5, color=ink)


def _cells(points: pd.DataFrame, system: str, trace: str) -> dict[tuple[int, float, str], Point]:
    """(room, usage, metric) -> point."""
    here = points[(points["row"] == system) & points["series"].str.startswith(f"{trace}, room ")]
    return {(_room_of(point["series"]), point["x"], point["metric"]): point for point in load.rows(here)}


def _rooms(points: pd.DataFrame, system: str, trace: str) -> list[int]:
    return sorted({room for room, _, _ in _cells(points, system, trace)})


def _room_of(series: str) -> int:
    return int(series.rpartition(" ")[2])


def _traces(points: pd.DataFrame) -> dict[str, float]:
    """Traces with the coefficient of variation of their lengths, from the most even one on."""
    spread = points[points["metric"] == "Length CV"]
    found = spread["value"].groupby(spread["series"].str.partition(", room ")[0]).mean()
    return {str(trace): float(cv) for trace, cv in found.sort_values().items()}


def _systems(points: pd.DataFrame) -> list[str]:
    """The system with the most classes first, real engines last, and of each the present view first."""
    sizes = points["row"].str.rpartition(", ")[0].value_counts()
    return sorted(
        points["row"].unique(),
        key=lambda row: (row.endswith(REAL), -sizes[row.rpartition(", ")[0]], PRESENT not in row),
    )


def _drawn(systems: Sequence[str]) -> list[str]:
    """Both views of the first system; of the others the present one where there is one, and real engines."""
    first = systems[0].rpartition(", ")[0]
    present = {system.rpartition(", ")[0] for system in systems if PRESENT in system}
    return [
        system
        for system in systems
        if system.startswith(first) or PRESENT in system or REAL in system or system.rpartition(", ")[0] not in present
    ]


def _usage_name(usage: float) -> str:
    upper = dict(zip(USAGES, [*USAGES[1:], 1.0], strict=True))[usage]
    return f"{100 * usage:.0f}-{100 * upper:.0f} %"


def _factor(point: Point | None) -> str:
    if point is None:
        return "-"
    value, low, high = (2 ** point[key] for key in ("value", "ci_low", "ci_high"))
    return f"{value:.3g}x" + (f" [{low:.3g}, {high:.3g}]" if point["n"] > 1 else "") + f" n={point['n']}"
