"""What benchmarks.moves makes of moves and steps written by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks import moves
from benchmarks.moves import Moved
from llumnix.cluster.real.messages import Step

MOVES = [Moved(256, "live", 15.0, 9.0, 16, "cuda_ipc", start, start + 0.02) for start in (0.1, 0.5, 0.9)]


def ends(step_s: float) -> list[Step]:
    """Steps of two requests that take 4 ms each, and 1 ms before the next; `step_s` more where the second move lies."""
    found, end_s = [], 0.0
    while end_s < 1.0:
        end_s += 0.005 + (step_s if 0.5 <= end_s < 0.52 else 0.0)
        found.append(Step(end_s, 0.004, 2, 2))
    return found


def test_the_others_slow_down_by_what_lies_between_two_ends_of_steps() -> None:
    calm, slowed = (moves._summary(MOVES, [ends(more_s), ends(0.0)], beside=2) for more_s in (0.0, 0.005))
    assert calm.step_ms == pytest.approx(5.0)  # and not 4: what the engine does between two steps counts
    assert calm.beyond_step_ms == pytest.approx(10.0)
    assert calm.slowdown == pytest.approx(1.0)
    assert slowed.step_ms == pytest.approx(5.0)
    assert 1.05 < slowed.slowdown < 1.5


def test_nobody_beside_is_slowed_down() -> None:
    alone = moves._summary(MOVES, [ends(0.0), []], beside=0)
    assert math.isnan(alone.slowdown)
    assert alone.slowdown_steps == 0
    assert "alone" in moves._line(alone)
