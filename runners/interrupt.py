"""Ctrl-C that waits for a moment at which it does no harm."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Note an interrupt (SIGINT) instead of raising it; the function that this gives raises KeyboardInterrupt for it.

    One that was noted and not raised by then is raised at the end. A second one is raised at once, so that a program
    that hangs can be ended. Where interrupts are ignored or handled in another way, they stay so. Main thread only.
    """
    before = signal.getsignal(signal.SIGINT)
    noted = False

    def note(number: int, frame: object) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    def raise_noted() -> None:
        nonlocal noted
        if noted:
            noted = False
            raise KeyboardInterrupt

    if before is not signal.default_int_handler:
        yield raise_noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield raise_noted
    finally:
        signal.signal(signal.SIGINT, before)
    raise_noted()
