"""Open-loop load: every request leaves at its scheduled time, whether earlier ones have been answered or not.

The schedule is absolute, so that a request that leaves late does not move those after it, and latencies count from the
scheduled time; how late the generator was is reported (no coordinated omission).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Drift:
    """How late requests left, in seconds."""

    mean_s: float
    max_s: float


def send_all(
    schedule_s: Sequence[float],
    send: Callable[[int], None],
    *,
    start_s: float,
    stop: threading.Event,
    clock: Callable[[], float] = time.time,
) -> Drift:
    """Call `send(i)` at `start_s + schedule_s[i]` for every i, or at once if that has passed, until `stop` is set."""
    late = []
    for index, offset_s in enumerate(schedule_s):
        due_s = start_s + offset_s
        while (left_s := due_s - clock()) > 0:
            if stop.wait(left_s):
                break
        if stop.is_set():
            break
        late.append(max(0.0, clock() - due_s))
        send(index)
    return Drift(sum(late) / len(late), max(late)) if late else Drift(0.0, 0.0)
