"""Real engines and the simulator on the same requests: how far the prediction is off.

A pair is a run on real engines and the latest simulated run of the same requests under the same scheduler on the same
system: as many instances, on a GPU of the same label, with as many KV blocks. Errors are (simulated - real) / real of
one statistic over the requests of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import beside, load
from analysis.style import GREY, PALETTE
from llumnix import metrics

EXPERIMENT = "validation"
VARIED = [
    "engine", "gpu", "cluster", "num_requests", "high_priority_fraction",
    "scheduler.scaling", "scheduler.queue_order", "scheduler.migration.high_priority",
]  # fmt: skip
"""The last two make no difference to most workloads, whose requests are of one class."""
REAL, SIMULATED, ERROR = "real", "simulated", " error"
LATENCIES = {
    "Request": metrics.request_latency,
    "Prefill": metrics.prefill_latency,
    "Decode": metrics.decode_latency,
}
STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "Mean": lambda values: float(np.mean(values)),
    "P50": lambda values: float(np.percentile(values, 50)),
    "P90": lambda values: float(np.percentile(values, 90)),
    "P99": lambda values: float(np.percentile(values, 99)),
}
COUNTS = {"Preemptions": "preemptions", "Migrations": "migrations"}
TARGETS = {"Mean": 0.05, "P99": 0.10}
"""The median error over all pairs should be at most this."""
WAY = "Way to an Instance"
FASTEST = 1
"""Percent of the requests: the others also waited for the end of a step, which the simulator adds by itself."""
"""From the arrival until an instance has it; P10, because most of them then wait for the end of a step."""
COLUMNS = ["arrival_s", "dispatch_s", "first_token_s", "end_s", "output_tokens", "status"]
COLOURS = dict(zip(STATISTICS, PALETTE, strict=False))
MARKERS = dict(zip(STATISTICS, ("o", "v", "D", "s"), strict=True))
FRAME = ["figure", "row", "series", "x_name", "x", "replicate", "metric", "value", "unit"]
BREAK = 12.0
"""Errors beyond this many times the target of the P99 are drawn at the edge."""


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """Per workload and scheduler: statistics and counts of both worlds, and errors where both have run."""
    rows: list[dict[str, Any]] = []
    runs = runs.assign(system=beside.system(runs))
    for key, of_pair in runs.groupby(["workload.sha256", "config.scheduler.name", "system"]):
        del key
        worlds = {}
        for is_simulated, of_world in of_pair.groupby(of_pair["config.engine.name"] == "sim"):
            latest = load.rows(of_world.sort_values("started_at").tail(1))[0]
            worlds[SIMULATED if is_simulated else REAL] = (latest, dict(_values(latest)))
        if REAL not in worlds:
            continue
        known = _known(worlds[REAL][0])
        for world, (_, values) in worlds.items():
            rows += [
                known | _named(metric, value) | {"series": f"{known['series']}, {world}"}
                for metric, value in values.items()
            ]
        if SIMULATED in worlds:
            real, simulated = worlds[REAL][1], worlds[SIMULATED][1]
            rows += [
                known | {"metric": metric + ERROR, "value": simulated[metric] / real[metric] - 1, "unit": "share"}
                for metric in real
                if metric not in (*COUNTS, WAY) and real[metric] > 0
            ]
    return pd.DataFrame(rows, columns=FRAME).sort_values(
        ["row", "series", "metric", "replicate"], kind="stable", ignore_index=True
    )


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """Each latency, real and simulated, over how far the simulated one is off; below them preemptions and moves."""
    pairs = _pairs(points)
    figure = Figure(figsize=(4.0 + 0.31 * len(pairs), 19.0), layout="constrained")
    axes = figure.subplots(2 * len(LATENCIES) + len(COUNTS), 1, sharex=True)
    for place, latency in enumerate(LATENCIES):
        _latencies(axes[2 * place], points, pairs, latency)
        _errors(axes[2 * place + 1], points, pairs, latency)
    for count, ax in zip(COUNTS, axes[-len(COUNTS) :], strict=True):
        _counts(ax, points, pairs, count)
    names = [f"{row}\n{series}" for row, series in pairs]
    axes[-1].set_xticks(range(len(pairs)), names, rotation=90, fontsize=8.5)
    axes[-1].set_xlim(-0.7, len(pairs) - 0.3)
    handles = [
        Line2D([], [], ls="", color=COLOURS[name], marker=MARKERS[name], mew=0, label=name) for name in STATISTICS
    ]
    handles.append(Line2D([], [], ls="", marker="o", color=GREY, mew=0, label="real"))
    handles.append(Line2D([], [], ls="", marker="o", mfc="none", mec=GREY, ms=8, label="simulated (hollow)"))
    figure.legend(handles=handles, loc="outside upper center", ncol=len(handles))
    return figure


def report(points: pd.DataFrame, notes: Sequence[str]) -> str:
    """The errors as a table with a line per pair, and their medians beside what they should be at most."""
    pairs = _pairs(points)
    errors = [f"{latency} {statistic}" for latency in LATENCIES for statistic in STATISTICS]
    lines = [
        "How far the simulator is off real engines: (simulated - real) / real",
        "",
        *notes,
        *([""] if notes else []),
    ]
    table = [["workload", "scheduler", *errors, *(f"{name}, real / sim" for name in COUNTS)]]
    for row, series in pairs:
        found = [_value(points, row, series, metric + ERROR) for metric in errors]
        counts = [
            " / ".join(_whole(_value(points, row, f"{series}, {world}", name)) for world in (REAL, SIMULATED))
            for name in COUNTS
        ]
        table.append([row, series, *(_percent(value) for value in found), *counts])
    lines += [*_table(table), ""]
    for statistic, target in {**dict.fromkeys(STATISTICS, None), **TARGETS}.items():
        of_all = points.loc[points["metric"].isin([f"{name} {statistic}{ERROR}" for name in LATENCIES]), "value"].abs()
        if of_all.empty:
            continue
        each = [
            f"{name.lower()} {100 * values.median():.1f} %"
            for name in LATENCIES
            if len(values := points.loc[points["metric"] == f"{name} {statistic}{ERROR}", "value"].abs())
        ]
        wanted = "" if target is None else f"; wanted: at most {100 * target:.0f} %"
        lines.append(f"Median error of {statistic}: {100 * of_all.median():.1f} % ({', '.join(each)}){wanted}.")
    way = points[(points["metric"] == WAY) & points["series"].str.endswith(f", {REAL}")]["value"].median()
    lines.append(
        f"Real requests reach an instance {1000 * way:.1f} ms after they arrive (engine.front_end_s={way:.4f}), "
        "and then wait for the end of a step."
    )
    if not points["metric"].str.endswith(ERROR).any():
        lines.append("Nothing simulated yet: repeat the commands with engine=sim_v1 gpu=PROFILE.")
    return "\n".join([*lines, ""])


def _known(run: dict[str, Any]) -> dict[str, Any]:
    bursts = f", CV {run['cv']:g}" if run["arrivals"] == "gamma" else ""
    rate = float(run["requested_rate_per_s"] if pd.isna(run["qps"]) else run["qps"])
    trace = run["config.trace.label"] or Path(str(run["config.trace.path"])).stem
    scaling = ", scaling" if run.get("config.scheduler.scaling.enabled") is True else ""
    return {
        "figure": EXPERIMENT,
        "row": f"{trace}, {rate:.3g}/s{bursts}, {run['system']}{scaling}",
        "series": run["config.scheduler.label"],
        "x_name": "request_rate",
        "x": rate,
        "replicate": load.replicate(run),
    }


def _values(run: dict[str, Any]) -> Iterator[tuple[str, float]]:
    requests = load.requests([run["directory"]], COLUMNS)
    finished = requests[requests["status"].astype(str) == metrics.FINISHED]
    for name, latency in LATENCIES.items():
        values = latency({column: finished[column].to_numpy() for column in COLUMNS})
        for statistic, of in STATISTICS.items():
            if len(values):
                yield f"{name} {statistic}", of(values)
    for name, key in COUNTS.items():
        yield name, float(run[key])
    if len(finished):
        yield WAY, float(np.percentile(finished["dispatch_s"] - finished["arrival_s"], FASTEST))


def _named(metric: str, value: float) -> dict[str, Any]:
    return {"metric": metric, "value": value, "unit": "1" if metric in COUNTS else "s"}


def _pairs(points: pd.DataFrame) -> list[tuple[str, str]]:
    """Workload and scheduler of each pair, workloads by trace and rate."""
    real = points[points["series"].str.endswith(f", {REAL}")]
    found = real[["row", "series", "x"]].drop_duplicates()
    found = found.assign(trace=found["row"].str.partition(",")[0]).sort_values(["trace", "x", "row", "series"])
    return [(row, series.removesuffix(f", {REAL}")) for row, series in zip(found["row"], found["series"], strict=True)]


def _value(points: pd.DataFrame, row: str, series: str, metric: str) -> float | None:
    here = points[(points["row"] == row) & (points["series"] == series) & (points["metric"] == metric)]
    return None if here.empty else float(here["value"].iloc[0])


def _latencies(ax: Axes, points: pd.DataFrame, pairs: Sequence[tuple[str, str]], latency: str) -> None:
    for statistic in STATISTICS:
        for world, look in ((REAL, {"mew": 0}), (SIMULATED, {"mfc": "none", "ms": 8.0})):
            values = [_value(points, row, f"{series}, {world}", f"{latency} {statistic}") for row, series in pairs]
            _marks(ax, values, statistic, look)
    ax.set_yscale("log")
    ax.set(title=f"{latency} latency", ylabel="s")


def _errors(ax: Axes, points: pd.DataFrame, pairs: Sequence[tuple[str, str]], latency: str) -> None:
    edge = 100 * BREAK * TARGETS["P99"]
    for statistic in STATISTICS:
        values = [_value(points, row, series, f"{latency} {statistic}{ERROR}") for row, series in pairs]
        drawn = [None if value is None else min(edge, max(-edge, 100 * value)) for value in values]
        _marks(ax, drawn, statistic, {"mew": 0})
    for target in TARGETS.values():
        ax.axhspan(-100 * target, 100 * target, color=GREY, alpha=0.12, lw=0)
    ax.axhline(0, color=GREY, lw=1)
    ax.set(title=f"{latency} latency, error of the simulator", ylabel="%")


def _marks(ax: Axes, values: Sequence[float | None], statistic: str, look: dict[str, Any]) -> None:
    shift = 0.14 * (list(STATISTICS).index(statistic) - 1.5)
    known = [(place + shift, value) for place, value in enumerate(values) if value is not None]
    places, heights = zip(*known, strict=True) if known else ((), ())
    ax.plot(places, heights, ls="", color=COLOURS[statistic], marker=MARKERS[statistic], **look)


def _counts(ax: Axes, points: pd.DataFrame, pairs: Sequence[tuple[str, str]], count: str) -> None:
    for world, shift, colour in ((REAL, -0.2, GREY), (SIMULATED, 0.2, PALETTE[0])):
        values = [_value(points, row, f"{series}, {world}", count) or 0 for row, series in pairs]
        ax.bar([place + shift for place in range(len(pairs))], values, 0.38, color=colour, label=world)
    ax.set(title=count, ylabel="count")
    ax.legend(fontsize=9.5)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f} %"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    text = [f"| {' | '.join(row)} |" for row in padded]
    return [text[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *text[1:]]
