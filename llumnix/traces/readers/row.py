"""The common shape of a trace row, and how its numbers are read. Knows no format and filters nothing."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

LARGEST_TOKENS = 10**9
"""Anything above is a broken number, not a length."""


class Row(NamedTuple):
    """One request as recorded; None stands for a column that the format does not have."""

    stamp_s: float | None
    prompt_tokens: int
    output_tokens: int
    model: str | None = None
    log_type: str | None = None


class Unusable(StrEnum):
    """Why a record is no request at all; the values are the reasons shown in the drop report."""

    broken = "broken row"
    one_turn = "fewer than two turns"
    no_lengths = "no length distribution"


def tokens(value: object) -> int:
    """A length in tokens from `12`, `"12"` or `"12.0"`; ValueError or TypeError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(value)
    number = float(value)
    if not (number.is_integer() and 0 <= number <= LARGEST_TOKENS):
        raise ValueError(value)
    return int(number)


def seconds(value: object) -> float:
    """A time in seconds from a number or its text; ValueError or TypeError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number
