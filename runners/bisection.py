"""Search for the boundary of a condition that holds up to some whole number and not beyond. Runs nothing itself."""

from __future__ import annotations

from collections.abc import Callable


def last_that_holds(holds: Callable[[int], bool], start: int, least: int, most: int) -> int | None:
    """Return the largest number in [least, most] for which `holds`; None if it does not even hold for `least`.

    From `start` on the number is doubled or halved until the answer changes, then the interval is halved, so that no
    number is asked twice. `most` as the answer says that no end was found. Where the condition goes to and fro, the
    answer is one of the places at which it holds for a number and not for the next.
    """
    holds_at, fails_at = least - 1, most + 1
    number = min(max(start, least), most)
    while fails_at - holds_at > 1:
        if holds(number):
            holds_at = number
        else:
            fails_at = number
        if fails_at > most:
            number = min(2 * number, most)
        elif holds_at < least:
            number = max(number // 2, least)
        else:
            number = (holds_at + fails_at) // 2
    return holds_at if holds_at >= least else None
