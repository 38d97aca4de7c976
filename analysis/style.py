"""How every figure looks: one colour, marker and line per series, so that a figure also reads in grey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import seaborn

DPI = 200
GREY = "#767676"
PALETTE: list[str] = seaborn.color_palette("colorblind", 8).as_hex()
"""For what is no scheduler; the first four are those of the series."""
_BLUE, _ORANGE, _GREEN, _RED = PALETTE[:4]


@dataclass(frozen=True, slots=True)
class SeriesStyle:
    """Colour, marker and dash pattern of one series."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]


SERIES = {
    "Llumnix": SeriesStyle(_ORANGE, "s", "-"),
    "INFaaS++": SeriesStyle(_BLUE, "o", (0, (5, 2))),
    "Round-Robin": SeriesStyle(_GREEN, "^", (0, (1, 1.5))),
    "Llumnix-base": SeriesStyle(_RED, "D", (0, (5, 1.5, 1, 1.5))),
}
"""Order is legend order and, reversed, drawing order: Llumnix lies on top."""

SETTINGS: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that the same points give the same file everywhere
    "font.size": 10,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 11,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 12,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "pdf.fonttype": 42,  # TrueType; venues refuse Type 3
    "ps.fonttype": 42,
    "svg.fonttype": "none",
}
