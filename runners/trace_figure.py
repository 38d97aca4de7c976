"""The picture of runners.trace: lengths, their pairing, and the rate over time. Computes no statistics of its own."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, NullFormatter

from llumnix.request import Workload
from llumnix.traces.statistics import counts_per_window
from llumnix.traces.table1 import PaperRow

PROMPT, OUTPUT, GREY = "#0173b2", "#de8f05", "#767676"
LEVELS = (0.50, 0.80, 0.95, 0.99)
WINDOWS_IN_PICTURE = 150
SETTINGS: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}


def draw(workload: Workload, paper: tuple[PaperRow, PaperRow] | None, arrivals: str, path: Path) -> Path:
    """Draw the workload into a PNG, which appears whole or not at all, and return its path.

    `paper` adds the published percentiles as hollow markers; `arrivals` names the arrival process.
    """
    with mpl.rc_context(SETTINGS):
        figure, (lengths, pairs, rate) = plt.subplots(
            1, 3, figsize=(13, 3.9), layout=ConstrainedLayoutEngine(wspace=0.06)
        )
        figure.suptitle(f"{workload.label}, {len(workload):,} requests", fontweight="bold")
        _draw_lengths(lengths, workload, paper)
        _draw_pairs(pairs, workload)
        _draw_rate(rate, workload, arrivals)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            figure.savefig(part, dpi=150, format="png")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
            plt.close(figure)
    return path


def _draw_lengths(axes: Axes, workload: Workload, paper: tuple[PaperRow, PaperRow] | None) -> None:
    sides = ((workload.prompt_tokens, PROMPT, "-", "prompt"), (workload.output_tokens, OUTPUT, "--", "output"))
    for (tokens, colour, line, label), published in zip(sides, paper or (None, None), strict=True):
        shortest_first = np.sort(tokens)
        levels = np.arange(len(tokens) + 1) / len(tokens)
        axes.step(
            np.append(shortest_first[:1], shortest_first),
            levels,
            where="post",
            color=colour,
            linestyle=line,
            label=label,
        )
        if published is not None:
            # In mid-air if the generator missed them.
            axes.plot(published[1:], LEVELS, "o", color=colour, markerfacecolor="white", markersize=6, zorder=3)
    if paper is not None:
        axes.plot([], [], "o", color=GREY, markerfacecolor="white", label="Table 1: P50, P80, P95, P99")
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="length (tokens)", ylabel="fraction of requests", title="Lengths")
    _plain_numbers(axes.xaxis)
    axes.legend(loc="upper left", fontsize=9)


def _plain_numbers(*axes: Axis) -> None:
    """1, 10, 100, 1k instead of powers of ten."""
    for axis in axes:
        axis.set_major_formatter(EngFormatter(sep=""))
        low, high = axis.get_view_interval()
        # Within one decade the numbers between powers of ten are needed.
        axis.set_minor_formatter(NullFormatter() if high > 10 * low else EngFormatter(sep=""))


def _draw_pairs(axes: Axes, workload: Workload) -> None:
    cells = axes.hexbin(
        workload.prompt_tokens,
        workload.output_tokens,
        gridsize=38,
        xscale="log",
        yscale="log",
        bins="log",
        mincnt=1,
        cmap="viridis",
        linewidths=0.1,
    )
    bar = axes.figure.colorbar(cells, ax=axes, pad=0.02)
    bar.ax.set_title("requests", fontsize=9)
    _plain_numbers(axes.xaxis, axes.yaxis, bar.ax.yaxis)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="prompt (tokens)", ylabel="output (tokens)", title="Prompt and output of a request")


def _draw_rate(axes: Axes, workload: Workload, arrivals: str) -> None:
    axes.set(xlabel="time (s)", ylabel="requests/s", title=f"Rate over time ({arrivals})")
    span_s = float(workload.arrival_s[-1] - workload.arrival_s[0])
    if span_s == 0:
        axes.text(0.5, 0.5, "all at the same time", ha="center", va="center", transform=axes.transAxes, color=GREY)
        return
    window_s = _round_up(span_s / WINDOWS_IN_PICTURE)
    rates = counts_per_window(workload.arrival_s, window_s) / window_s
    edges = workload.arrival_s[0] + window_s * np.arange(len(rates) + 1)
    mean = (len(workload) - 1) / span_s
    axes.stairs(rates, edges, color=PROMPT, fill=True, alpha=0.25)
    axes.stairs(rates, edges, color=PROMPT, label=f"per {window_s:g} s")
    axes.axhline(mean, color=GREY, linestyle="--", label=f"mean {mean:.3g}/s")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", fontsize=9, frameon=True, framealpha=0.85, edgecolor="none")


def _round_up(window_s: float) -> float:
    """The next of 1, 2, 5 × 10^k."""
    power = 10.0 ** math.floor(math.log10(window_s))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= window_s * (1 - 1e-9)))
