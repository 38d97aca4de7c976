"""Table 1 of the paper: the length distributions of its traces, in tokens, as mean, P50, P80, P95 and P99.

The rows of the real data sets are as published; those of Short, Medium and Long equal the artifact's recipe.
"""

from __future__ import annotations

from typing import NamedTuple


class PaperRow(NamedTuple):
    """One row of Table 1."""

    mean: float
    p50: float
    p80: float
    p95: float
    p99: float


_SHORT = PaperRow(128, 38, 113, 413, 1464)
_MEDIUM = PaperRow(256, 32, 173, 1288, 4208)
_LONG = PaperRow(512, 55, 582, 3113, 5166)

TABLE_1 = {
    "sharegpt": (PaperRow(306, 74, 348, 1484, 3388), PaperRow(500, 487, 781, 988, 1234)),
    "burstgpt": (PaperRow(830, 582, 1427, 2345, 3549), PaperRow(271, 243, 434, 669, 964)),
    "s_s": (_SHORT, _SHORT),
    "m_m": (_MEDIUM, _MEDIUM),
    "l_l": (_LONG, _LONG),
    "s_l": (_SHORT, _LONG),
    "l_s": (_LONG, _SHORT),
}
"""Trace name -> (prompt row, output row)."""
