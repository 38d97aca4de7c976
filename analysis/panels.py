"""One panel: lines of our means with their intervals, the paper's points as hollow markers, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.style import GREY, SERIES


def draw(ax: Axes, points: pd.DataFrame, paper: pd.DataFrame, absent: Sequence[str]) -> None:
    """Draw the points of one row and metric; `absent` are lines of text on what has not run.

    The y axis starts at 0, with room for markers that lie there, and is scaled by means and published points: an
    interval may leave the panel, so that one noisy point does not flatten the others.
    """
    for layer, (series, style) in enumerate(reversed(SERIES.items())):
        ours = points[points["series"] == series].sort_values("x")
        theirs = paper[paper["series"] == series]
        half = ours["ci_high"] - ours["value"]
        ax.errorbar(
            ours["x"], ours["value"], half, fmt="none", ecolor=style.colour, elinewidth=1.0, capsize=2.2, alpha=0.6,
            zorder=2,
        )  # fmt: skip
        ax.plot(
            ours["x"], ours["value"], color=style.colour, ls=style.line, marker=style.marker, mew=0, zorder=4 + layer
        )
        ax.plot(
            theirs["x"], theirs["value"], ls="", marker=style.marker, mfc="none", mec=style.colour, mew=1.0, ms=7.5,
            zorder=3,
        )  # fmt: skip
    ticks = sorted({*points["x"], *paper["x"]})
    ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    top = max([*points["value"], *paper["value"]], default=1.0)
    top = top if top > 0 else 1.0
    ax.set_ylim(-0.05 * top, (1.1 + 0.14 * len(absent)) * top)
    ax.margins(x=0.06)
    ax.locator_params(axis="y", nbins=5)
    if absent:
        ax.text(
            0.5, 0.99, "\n".join(absent), transform=ax.transAxes, ha="center", va="top", fontsize=7.5, color=GREY,
            style="italic", bbox={"fc": "white", "ec": "none", "pad": 1.0},
        )  # fmt: skip


def name_row(ax: Axes, name: str, remark: str) -> None:
    """The row's name in bold to the left of its first panel, with a remark under it."""
    for text, x, settings in ((name, -0.56, {"weight": "bold", "size": 12.5}), (remark, -0.44, {"size": 9.5})):
        ax.text(x, 0.5, text, transform=ax.transAxes, rotation=90, ha="center", va="center", **settings)


def interval_label(points: pd.DataFrame) -> str:
    """What an error bar of these points is; empty where each is of one run."""
    runs = points["n"]
    most = f"{runs.min()}" if runs.min() == runs.max() else f"{runs.min()}-{runs.max()}"
    return f"95 % interval of the mean ({most} runs)" if (runs > 1).any() else ""


def legend_handles(series: Sequence[str], runs: str, hollow: str = "paper") -> list[Line2D]:
    """A handle per series in legend order, then one for intervals (none where there are none) and one for `hollow`."""
    handles: list[Line2D] = [
        Line2D([], [], color=style.colour, ls=style.line, marker=style.marker, mew=0, label=name)
        for name, style in SERIES.items()
        if name in series
    ]
    if runs:
        handles.append(Line2D([], [], ls="", color=GREY, marker="|", ms=13, mew=1.2, label=runs))
    label = f"{hollow} (hollow markers)"
    return [*handles, Line2D([], [], ls="", marker="o", mfc="none", mec=GREY, ms=7.5, label=label)]
