"""Figure 10 (§6.2): how long a request stands still when it moves, and decode steps while it does.

One batch of equal requests decodes on one instance, and one of them moves to an idle one: by live migration, by one
stop-and-copy, or by computing its KV cache again. On real engines the gap between its tokens is drawn, too. Later
moves, if there are any, find another batch and do not count, as in the released script.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import load
from analysis.style import GREY, PALETTE
from llumnix.metrics import migration_downtime, migration_gap

EXPERIMENT = "fig10"
VARIED = ["model", "trace.prompt_tokens"]
WAYS = {"llumnix": "Migration", "llumnix_one_stage": "Blocking copy", "replay": "Recompute"}
"""Scheduler -> series of the paper."""
STILL = "llumnix_no_migration"
DOWNTIME, DECODE, GAP, LOST = "Downtime", "Decode Latency", "Token Gap", "Decode Steps Lost"
X_NAME = "sequence_length"
COLOURS = dict(zip(("Migration", "Blocking copy", "Recompute", "Normal"), PALETTE, strict=False))
MARKERS = {"Migration": "o", "Blocking copy": "v", "Recompute": "s", "Normal": "v"}
LINES = ("-", (0, (5, 2)))


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows per model, length and way; downtime and gap of the request that moves first, decode steps of the source."""
    rows = [row for run in runs.to_dict("records") for row in _of_run({str(key): run[key] for key in run})]
    found = _with_steps_lost(pd.DataFrame(rows).assign(unit="ms")).assign(figure=EXPERIMENT, x_name=X_NAME)
    return found.sort_values(["row", "metric", "series", "x"], ascending=[False, False, True, True], kind="stable")


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """A panel per metric; the paper's points hollow. Times of moves differ a hundredfold: their axis is logarithmic."""
    metrics = [metric for metric in (DOWNTIME, GAP, DECODE) if metric in set(points["metric"])]
    figure = Figure(figsize=(5.6 * len(metrics), 4.6), layout="constrained")
    for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        _panel(ax, points[points["metric"] == metric], paper[paper["metric"] == metric])
        if metric == DECODE:
            ax.set_ylim(0, None)
        else:
            ax.set_yscale("log")
        ax.set(title=metric, xlabel="Sequence length (tokens)", ylabel="Time (ms)")
    return figure


def _of_run(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not moved_out_of_the_whole_batch(run):
        return
    known = {"row": run["config.model.label"], "x": _length_tokens(run), "replicate": load.replicate(run)}
    scheduler = run["config.scheduler.name"]
    if scheduler in WAYS:
        first = _first_to_move(run)
        yield {**known, "metric": DOWNTIME, "series": WAYS[scheduler], "value": 1000 * migration_downtime(first)[0]}
        if run["config.engine.name"] != "sim":
            yield {**known, "metric": GAP, "series": WAYS[scheduler], "value": 1000 * migration_gap(first)[0]}
    if scheduler in ("llumnix", STILL):
        series = "Migration" if scheduler == "llumnix" else "Normal"
        yield {**known, "metric": DECODE, "series": series, "value": 1000 * _decode_step_s(run)}


def _with_steps_lost(found: pd.DataFrame) -> pd.DataFrame:
    """Each downtime once more, in normal decode steps of the batch that it was taken from."""
    point = ["row", "x", "replicate"]
    steps = found[(found["metric"] == DECODE) & (found["series"] == "Normal")].set_index(point)["value"].rename("step")
    lost = found[found["metric"] == DOWNTIME].join(steps, on=point, how="inner")
    lost = lost.assign(value=lost["value"] / lost["step"], metric=LOST, unit="steps").drop(columns="step")
    return pd.concat([found, lost], ignore_index=True)


def _length_tokens(run: dict[str, Any]) -> float:
    """The length that the figure is drawn over: the prompt, and what fills its last block."""
    block_tokens = int(run["config.cluster.block_size_tokens"])
    return float(-(-int(run["config.trace.prompt_tokens"]) // block_tokens) * block_tokens)


def _first_to_move(run: dict[str, Any]) -> dict[str, Any]:
    """Columns of requests.parquet, one row long. A request that moves again counts with the mean of its moves."""
    events, requests = (load.table(run["directory"], name) for name in ("events", "requests"))
    first = events.loc[events["kind"] == "migrate_commit"].sort_values("time_s", kind="stable")["request_id"].iloc[0]
    return {str(name): column.to_numpy() for name, column in requests[requests["request_id"] == first].items()}


def moved_out_of_the_whole_batch(run: dict[str, Any]) -> bool:
    """Real migration rounds know nothing of arrivals: left out are runs where one came while prompts were prefilled."""
    events, steps = (load.table(run["directory"], name) for name in ("events", "steps"))
    begun_s = events.loc[events["kind"] == "migrate_start", "time_s"]
    if begun_s.empty:
        return bool(run["config.scheduler.name"] == STILL)
    before = steps[(steps["instance_id"] == 0) & (steps["start_s"] < begun_s.iloc[0])]
    last = before.sort_values("start_s").iloc[-1]
    return bool(last["batch"] == last["tokens"] == run["workload.requests"])


def _decode_step_s(run: dict[str, Any]) -> float:
    """Mean decode step of the whole batch: of those begun while the first stage was copied; of all if nothing moves.

    Real engines also work between two steps, for a move not least: there a step lasts since the end of the one before.
    """
    steps = load.table(run["directory"], "steps")
    if run["config.engine.name"] != "sim":
        steps = steps[steps["instance_id"] == 0].sort_values("start_s", kind="stable")
        steps["duration_s"] = (steps["start_s"] + steps["duration_s"]).diff().fillna(steps["duration_s"])
    chosen = steps[(steps["tokens"] == steps["batch"]) & (steps["batch"] == run["workload.requests"])]
    events = load.table(run["directory"], "events")
    begun_s, copied_s = (events.loc[events["kind"] == kind, "time_s"] for kind in ("migrate_start", "migrate_stage"))
    if len(begun_s):
        during = chosen[chosen["start_s"].between(begun_s.iloc[0], copied_s.iloc[0])]
        # A copy that is shorter than a step lies within the one that was under way.
        chosen = during if len(during) else chosen[chosen["start_s"] <= begun_s.iloc[0]].tail(1)
    return float(chosen["duration_s"].sum() / chosen["steps"].sum())


def _panel(ax: Axes, points: pd.DataFrame, paper: pd.DataFrame) -> None:
    for line, (model, of_model) in zip(LINES, points.groupby("row", sort=False), strict=False):
        for series, ours in of_model.groupby("series", sort=False):
            colour, marker = COLOURS[str(series)], MARKERS[str(series)]
            half = (ours["ci_high"] - ours["value"]).where(ours["n"] > 2)  # of two runs it is wider than the panel
            ax.errorbar(ours["x"], ours["value"], half, ls=line, color=colour, marker=marker, mew=0, capsize=2)
            theirs = paper[(paper["row"] == model) & (paper["series"] == series)]
            ax.plot(theirs["x"], theirs["value"], ls="", marker=marker, mfc="none", mec=colour, ms=8)
    ax.set_xscale("log", base=2)
    ticks = sorted(points["x"].unique())
    ax.set_xticks(ticks, [f"{x / 1024:g}k" if x >= 1024 else f"{x:g}" for x in ticks])
    names = points["series"].unique()
    handles = [Line2D([], [], color=COLOURS[name], marker=MARKERS[name], mew=0, label=name) for name in names]
    models = zip(LINES, points["row"].unique(), strict=False)
    handles += [Line2D([], [], color=GREY, ls=line, label=model) for line, model in models]
    handles.append(Line2D([], [], color=GREY, ls="", marker="o", mfc="none", ms=8, label="paper, A10"))
    ax.legend(handles=handles, fontsize=9.5)
