"""The common shape of a trace row, and how its numbers are read. Knows no format and filters nothing."""

from __future__ import annotations

import math
from typing import NamedTuple

LARGEST_TOKENS = 10**9
"""Anything above is a broken number, not a length."""


class Row(NamedTuple):
    """One record of a trace; None stands for a column that the format does not have.

    `unusable` tells why a record is no request at all; it is the reason shown in the drop report.
    """

    stamp_s: float | None
    prompt_tokens: int
    output_tokens: int
    model: str | None = None
    log_type: str | None = None
    unusable: str | None = None


BROKEN = Row(None, 0, 0, unusable="broken row")


def tokens(value: object) -> int:
    """A length in tokens from `12`, `"12"` or `"12.0"`; ValueError, TypeError or OverflowError otherwise."""
    if type(value) is int:
        number = value
    elif isinstance(value, str) and value.isdecimal():
        number = int(value)
    elif isinstance(value, str | float) and float(value).is_integer():
        number = int(float(value))
    else:
        raise TypeError(value)
    if not 0 <= number <= LARGEST_TOKENS:
        raise ValueError(value)
    return number


def seconds(value: object) -> float:
    """A time in seconds from a number or its text; ValueError or TypeError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number
