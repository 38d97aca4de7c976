"""Figure 3 (§3): what preemption costs. One instance of LLaMA-7B, M-M lengths, 0.42 requests/s.

The loss of a request at a percentile is that of the requests ranked within half a percent of it, since one request
alone says little.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import load
from analysis.style import GREY, PALETTE
from llumnix.metrics import FINISHED, decode_latency, preemption_loss

EXPERIMENT = "fig03"
SERIES = "one instance"
PERCENTILES = (50, 80, 95, 99)
NEIGHBOURS = 0.005
"""Requests whose rank is within this share of a percentile's stand for it."""
BIN_S = 30.0
BLUE, ORANGE = PALETTE[0], PALETTE[1]
FloatArray = npt.NDArray[np.float64]


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per number and run; memory over time and the losses of single requests from the first run."""
    rows = [row for run in load.rows(runs) for row in _of_run(run)]
    first = load.first_run(runs)
    rows += [*_memory_over_time(first), *_losses(first)]
    return pd.DataFrame(rows).assign(figure=EXPERIMENT, row="M-M", series=SERIES)


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """Memory over time, decode latency with what preemption adds, and the losses of preempted requests."""
    figure = Figure(figsize=(14.5, 4.2), layout="constrained")
    memory, latency, losses = figure.subplots(1, 3)
    by_metric = dict(list(points.groupby("metric")))
    _draw_memory(memory, by_metric["Memory In Use"], by_metric["Memory Load"]["value"].iloc[0])
    _draw_latency(latency, by_metric["Decode Latency"], by_metric["Loss per Token"])
    _draw_losses(
        losses, by_metric.get("Preemption Loss", points.iloc[:0]), by_metric["Preempted Share"]["value"].iloc[0]
    )
    return figure


def _of_run(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    finished = _finished(run)
    latency_s, loss_s = _latency_and_loss(finished)
    name = load.replicate(run)
    at = {"x_name": "request_rate", "x": float(run["qps"]), "replicate": name}
    order = np.argsort(latency_s, kind="stable")
    percentile_s = dict(zip(PERCENTILES, np.percentile(latency_s, PERCENTILES), strict=True))
    for percentile in PERCENTILES:
        near = _near(order, percentile)
        where = {"x_name": "percentile", "x": float(percentile), "replicate": name, "unit": "s"}
        share = loss_s[near].sum() / latency_s[near].sum()
        yield {**where, "metric": "Decode Latency", "value": percentile_s[percentile]}
        yield {**where, "metric": "Loss per Token", "value": share * percentile_s[percentile]}
        if percentile == 99:
            yield {**at, "metric": "Loss in P99", "value": share, "unit": "share"}
    yield {**at, "metric": "P99 / P50", "value": percentile_s[99] / percentile_s[50], "unit": "x"}
    yield {**at, "metric": "Preempted Share", "value": (finished["preemptions"] > 0).mean(), "unit": "share"}
    yield {**at, "metric": "Worst Loss", "value": finished["preemption_loss_s"].max(), "unit": "s"}
    in_use = _memory_in_use(run)
    yield {**at, "metric": "Memory Load", "value": in_use["value"].mean(), "unit": "share"}


def _finished(run: dict[str, Any]) -> pd.DataFrame:
    requests = load.table(run["directory"], "requests")
    return requests[requests["status"] == FINISHED]


def _latency_and_loss(finished: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Per request: mean gap between tokens, and how much of that gap is preemption loss; both in s."""
    columns = {str(name): column.to_numpy() for name, column in finished.items()}
    gaps = np.maximum(columns["output_tokens"] - 1.0, 1.0)
    return decode_latency(columns), preemption_loss(columns) / gaps


def _near(order: npt.NDArray[np.intp], percentile: float) -> npt.NDArray[np.intp]:
    """The requests around a percentile; `order` sorts all of them."""
    middle, half = percentile / 100 * (len(order) - 1), NEIGHBOURS * len(order)
    return order[max(0, int(np.ceil(middle - half))) : int(middle + half) + 1]


def _memory_in_use(run: dict[str, Any]) -> pd.DataFrame:
    """time_s and the share of KV blocks in use, while requests arrive."""
    instances = load.table(run["directory"], "instances")
    last_s = load.table(run["directory"], "requests")["arrival_s"].max()
    instances = instances[instances["time_s"] <= last_s]
    in_use = 1 - instances["free_blocks"] / instances["total_blocks"]
    return pd.DataFrame({"time_s": instances["time_s"], "value": in_use})


def _memory_over_time(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    in_use = _memory_in_use(run)
    binned = in_use.groupby(in_use["time_s"] // BIN_S * BIN_S)["value"].mean()
    for time_s, value in binned.items():
        at = {"metric": "Memory In Use", "x_name": "time_s", "x": time_s}
        yield {**at, "value": value, "unit": "share", "replicate": ""}


def _losses(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    preempted = _finished(run).query("preemptions > 0").sort_values("preemption_loss_s", ascending=False)
    losses = zip(preempted["preemption_loss_s"], preempted["preemptions"], strict=True)
    for rank, (loss_s, times) in enumerate(losses, start=1):
        name = f"preempted {'once' if times == 1 else 'more than once'}"
        at = {"metric": "Preemption Loss", "x_name": name, "x": float(rank)}
        yield {**at, "value": loss_s, "unit": "s", "replicate": ""}


def _draw_memory(ax: Axes, over_time: pd.DataFrame, mean: float) -> None:
    ax.fill_between(over_time["x"], 100 * over_time["value"], step="post", color=BLUE, alpha=0.25, lw=0)
    ax.step(over_time["x"], 100 * over_time["value"], where="post", color=BLUE, lw=1.0)
    ax.axhline(100 * mean, color=GREY, ls="--", lw=1.2)
    ax.text(
        0.99, 100 * mean + 1, f"mean {100 * mean:.0f} % (paper 62 %)", transform=ax.get_yaxis_transform(), ha="right",
        color=GREY, bbox={"fc": "white", "ec": "none", "pad": 1.0, "alpha": 0.8},
    )  # fmt: skip
    ax.set(title="Memory", xlabel="Time (s)", ylabel="KV blocks in use (%)", ylim=(0, 103))


def _draw_latency(ax: Axes, latency: pd.DataFrame, loss: pd.DataFrame) -> None:
    latency, loss = latency.sort_values("x"), loss.sort_values("x")
    names = [f"P{x:g}" for x in latency["x"]]
    rest = latency["value"].to_numpy() - loss["value"].to_numpy()
    ax.bar(names, 1000 * rest, color=BLUE, width=0.6, label="decoding")
    ax.bar(names, 1000 * loss["value"], bottom=1000 * rest, color=ORANGE, hatch="///", ec="white", width=0.6,
           label="preemption loss")  # fmt: skip
    half = 1000 * (latency["ci_high"] - latency["value"]).to_numpy()
    if np.isfinite(half).any():
        ax.errorbar(names, 1000 * latency["value"], half, fmt="none", ecolor="black", capsize=3, lw=1)
    for place, value in enumerate(latency["value"]):
        ax.text(place, 1000 * value, f"{value / latency['value'].iloc[0]:.1f}x", ha="center", va="bottom", fontsize=9.5)
    ax.set(title="Decode latency of requests", ylabel="Mean time per token (ms)")
    ax.margins(y=0.12)
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper left", fontsize=10)


def _draw_losses(ax: Axes, losses: pd.DataFrame, share: float) -> None:
    for (name, group), colour, marker in zip(losses.groupby("x_name"), (ORANGE, BLUE), ("D", "o"), strict=False):
        ax.plot(group["x"], group["value"], ls="", marker=marker, color=colour, mew=0, label=name)
    ax.set(title=f"Preempted requests ({100 * share:.1f} %)", xlabel="Request, by loss", ylabel="Preemption loss (s)")
    ax.set_yscale("symlog", linthresh=1.0)
    ax.set_ylim(bottom=0)
    if len(losses):
        ax.legend(loc="upper right", fontsize=10)
