"""Open-loop sending on an absolute schedule."""

from __future__ import annotations

import threading

import pytest

from llumnix.cluster.real.load_generator import send_all


class Clock:
    """Time passes only where somebody waits or works."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Stop(threading.Event):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._of = clock

    def wait(self, timeout: float | None = None) -> bool:
        self._of.now_s += timeout or 0.0
        return self.is_set()


def test_a_late_request_does_not_move_those_after_it() -> None:
    clock = Clock()
    sent: list[tuple[int, float]] = []

    def send(index: int) -> None:
        sent.append((index, clock.now_s - 100.0))
        clock.now_s += 1.5 if index == 0 else 0.0  # the client is busy

    drift = send_all([0.0, 1.0, 3.0], send, start_s=100.0, stop=Stop(clock), clock=clock)
    assert sent == [(0, 0.0), (1, 1.5), (2, 3.0)]
    assert drift.max_s == pytest.approx(0.5)
    assert drift.mean_s == pytest.approx(0.5 / 3)


def test_stopping_ends_the_schedule() -> None:
    clock = Clock()
    stop = Stop(clock)
    sent: list[int] = []

    def send(index: int) -> None:
        sent.append(index)
        stop.set()

    send_all([0.0, 1.0, 2.0], send, start_s=100.0, stop=stop, clock=clock)
    assert sent == [0]
