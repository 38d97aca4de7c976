"""What a move costs by each transport: the gap between tokens, and how fast its KV blocks were copied.

The batch of Figure 10 on real engines; one of its requests moves live, or stops while all of it is copied. The rate is
that of the first stage of a live move, its reservation and messages included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import load
from analysis.figures.fig10 import moved_out_of_the_whole_batch
from analysis.style import GREY, PALETTE

EXPERIMENT = "transports"
VARIED = ["model", "trace.prompt_tokens", "engine.transports"]
WAYS = {"llumnix": "live", "llumnix_one_stage": "blocking"}
LINES = {"live": "-", "blocking": (0, (5, 2))}
GAP, DOWNTIME, RATE = "Token Gap", "Downtime", "Copy Rate"
FIRST_STAGE, STEP_THERE = "First Stage", "Step There"
UNITS = {GAP: "ms", DOWNTIME: "ms", RATE: "GB/s", FIRST_STAGE: "ms", STEP_THERE: "ms"}
DRAWN = [GAP, DOWNTIME, RATE]
CONTROL_MS = 1.0
"""One way of a message, as the cost model has it by default; latencies are what is left without messages."""


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows per model, length, transport and way of moving; runs in which nothing moved are no points."""
    rows = [row for run in load.rows(runs) for row in _of_run(run)]
    columns = ["row", "x", "replicate", "series", "metric", "value"]
    found = pd.DataFrame(rows, columns=columns).assign(figure=EXPERIMENT, x_name="sequence_length")
    found["unit"] = found["metric"].map(UNITS)
    return found.sort_values(["row", "metric", "series", "x"], kind="stable", ignore_index=True)


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """A panel per metric, both axes logarithmic: transports differ a hundredfold."""
    transports = list(dict.fromkeys(series.partition(",")[0] for series in points["series"]))
    colours = dict(zip(transports, PALETTE, strict=False))
    figure = Figure(figsize=(15.5, 4.8), layout="constrained")
    for metric, ax in zip(DRAWN, figure.subplots(1, len(DRAWN)), strict=True):
        here = points[points["metric"] == metric]
        for series, of_series in here.groupby("series", sort=False):
            transport, _, way = str(series).partition(", ")
            ax.plot(of_series["x"], of_series["value"], color=colours[transport], ls=LINES[way], marker="o", mew=0)
        ticks = sorted(points["x"].unique())
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(ticks, [f"{x / 1024:g}k" if x >= 1024 else f"{x:g}" for x in ticks])
        ax.set(title=metric, xlabel="Sequence length (tokens)", ylabel=UNITS[metric])
    handles = [Line2D([], [], color=colour, marker="o", mew=0, label=name) for name, colour in colours.items()]
    handles += [Line2D([], [], color=GREY, ls=line, label=way) for way, line in LINES.items()]
    figure.legend(handles=handles, loc="outside upper center", ncol=len(handles))
    return figure


def report(points: pd.DataFrame, notes: Sequence[str]) -> str:
    """The points as text, a line per transport, way and length."""
    lines = ["Moves by transport: gap between two tokens, downtime, rate of the first stage's copy", "", *notes]
    for (row, series, x), here in points.groupby(["row", "series", "x"], sort=False):
        values = [
            f"{name.lower()} {value:.3g} {unit}" for name, value, unit in here[["metric", "value", "unit"]].to_numpy()
        ]
        lines.append(f"{row}, {series}, {x:g} tokens: {', '.join(values)}")
    lines += ["", f"For an option of conf/gpu, with control_ms: {CONTROL_MS:g}"]
    live = points[points["series"].str.endswith(", live")]
    lines += [f"{row}, {name}: {_costs(moves)}" for (row, name), moves in live.groupby(["row", "series"], sort=False)]
    return "\n".join([*lines, ""])


def _of_run(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    way = WAYS.get(run["config.scheduler.name"])
    if way is None or not run["migrations"] or not moved_out_of_the_whole_batch(run):
        return
    transports = "+".join(run["config.engine.transports"]) or "any"
    known = {"row": run["config.model.label"], "x": float(run["config.trace.prompt_tokens"])}
    known |= {"replicate": load.replicate(run), "series": f"{transports}, {way}"}
    yield known | {"metric": GAP, "value": 1000 * run["migration_gap_mean_s"]}
    yield known | {"metric": DOWNTIME, "value": 1000 * run["migration_downtime_mean_s"]}
    if way == "live" and (first_stage_s := _first_stage_s(run)) is not None:
        copied = run["config.trace.prompt_tokens"] * run["config.model.kv_bytes_per_token"]
        yield known | {"metric": RATE, "value": 1e-9 * copied / first_stage_s}
        yield known | {"metric": FIRST_STAGE, "value": 1000 * first_stage_s}
        yield known | {"metric": STEP_THERE, "value": 1000 * _step_there_s(run)}


def _first_stage_s(run: dict[str, Any]) -> float | None:
    """From the start of the first move that was committed to the end of its first stage; the prompt is copied in it."""
    events = load.table(run["directory"], "events")
    moved = events.loc[events["kind"] == "migrate_commit", "request_id"].iloc[0]
    of_move = events[events["request_id"] == moved].set_index("kind")["time_s"]
    if "migrate_stage" not in of_move.index:
        return None
    begun_s, copied_s = (of_move[[kind]].iloc[0] for kind in ("migrate_start", "migrate_stage"))
    return float(copied_s - begun_s)


def _step_there_s(run: dict[str, Any]) -> float:
    """Median decode step of the request that moved, alone at its destination."""
    steps = load.table(run["directory"], "steps")
    alone = steps[(steps["instance_id"] != 0) & (steps["batch"] == 1) & (steps["tokens"] == 1)]
    return float((alone["duration_s"] / alone["steps"]).median())


def _costs(live: pd.DataFrame) -> str:
    """The fields of the cost model that live moves by one transport tell: a line through the first stages over bytes.

    A simulated first stage takes two messages besides its copy, and so does the last one between two tokens.
    """
    moves = live.pivot_table(index="x", columns="metric", values="value").dropna()
    still_ms = (moves[GAP] - moves[STEP_THERE]).median() - 2 * CONTROL_MS
    found = {"last_copy_latency_ms": max(0.0, still_ms)}
    if len(moves) > 1:
        copied_mb = moves[RATE] * moves[FIRST_STAGE]  # GB/s times ms
        slope, first_ms = np.polyfit(copied_mb, moves[FIRST_STAGE], 1)
        found["copy_latency_ms"] = max(0.0, first_ms - 2 * CONTROL_MS)
        if slope > 0:
            found["copy_bandwidth_gb_s"] = 1 / slope
    return ", ".join(f"{name}: {value:.3g}" for name, value in found.items())
