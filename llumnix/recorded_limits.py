"""What the time series of a real engine tells about its limits: KV blocks, and requests at a time.

timeseries.csv has a row now and then: running and waiting requests, and kv_cache_pct, the share of its KV blocks that
was in use. An engine with N blocks can only show the percentages of 0/N, 1/N, ..., rounded: many different ones fit few
N, and none smaller than the true one but by chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from llumnix.number_table import floats, read_table
from llumnix.request import FloatArray

TIMESERIES = "timeseries.csv"
RUNNING, WAITING, KV_PERCENT = "running", "waiting", "kv_cache_pct"
NEARLY_FULL_PERCENT = 90.0
"""Below, no request has waited for memory or given way, so that its size does not matter."""
MOST_BLOCKS = 500_000
MOST_DECIMALS = 8
CHANCE = 0.001
"""How probable it may be that a wrong number of blocks fits."""
FEWEST_FULL = 5
"""Rows one after the other in which as many requests ran as ever, and others waited, that show a limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How full the KV cache was at most, in percent, and what limits show; None for what does not."""

    fullest_percent: float | None = None
    kv_blocks: int | None = None
    max_num_seqs: int | None = None


def read(path: Path) -> Limits:
    """Read a timeseries.csv, of which every column is optional. ConfigError if it is no table of numbers."""
    if not path.exists():
        return Limits()
    table = read_table(path)
    running, waiting, percent = (
        floats(path, table, name) if name in table.column_names else np.full(table.num_rows, np.nan)
        for name in (RUNNING, WAITING, KV_PERCENT)
    )
    known = percent[~np.isnan(percent)]
    return Limits(
        fullest_percent=float(known.max()) if len(known) else None,
        kv_blocks=kv_blocks(known),
        max_num_seqs=max_num_seqs(running, waiting, percent),
    )


def kv_blocks(percent: FloatArray) -> int | None:
    """Return the number of blocks that these percentages, rounded to some decimals, are shares of.

    It is the smallest one that can show them all; None if others up to twice as many can, or one may by chance.
    """
    shown = np.unique(percent[(percent > 0) & (percent < 100)])
    unit = 10.0 ** -_decimals(shown)
    by_chance = 0.0
    for blocks in range(1, min(MOST_BLOCKS, int(50 / unit)) + 1):
        # Of a wrong number, no more than this share of all percentages is near one that it can show.
        by_chance += min(1.0, 1.5 * blocks * unit / 100) ** len(shown)
        if by_chance > CHANCE:
            return None
        if _can_show(shown, blocks, unit):
            others = range(blocks + 1, 2 * blocks)
            return None if any(_can_show(shown, other, unit) for other in others) else blocks
    return None


def _decimals(shown: FloatArray) -> int:
    """How many decimals the percentages have."""
    every = (d for d in range(MOST_DECIMALS) if np.allclose(shown, np.round(shown, d), rtol=0, atol=1e-9))
    return next(every, MOST_DECIMALS)


def _can_show(shown: FloatArray, blocks: int, unit: float) -> bool:
    """Whether all percentages are shares of so many blocks, rounded to `unit`, halves either way."""
    return bool(np.all(np.abs(100 * np.round(shown * blocks / 100) / blocks - shown) <= 0.5001 * unit + 1e-9))


def max_num_seqs(running: FloatArray, waiting: FloatArray, percent: FloatArray) -> int | None:
    """Return how many requests ran whenever others waited although there was memory, if that was a limit."""
    seen = ~np.isnan(running)
    if not seen.any():
        return None
    most = running[seen].max()
    full = (running == most) & (waiting > 0) & ~(percent > NEARLY_FULL_PERCENT)
    longest = max((len(list(rows)) for is_full, rows in groupby(full.tolist()) if is_full), default=0)
    return int(most) if longest >= FEWEST_FULL else None
