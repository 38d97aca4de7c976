"""Where a new request goes (§4.4.1)."""

from __future__ import annotations

from enum import StrEnum


class DispatchRule(StrEnum):
    """round_robin: in turn, blind to load. freest: the instance of highest freeness, the last one among equals.
    first: always the first one, for measurements of a single source.
    """

    round_robin = "round_robin"
    freest = "freest"
    first = "first"
