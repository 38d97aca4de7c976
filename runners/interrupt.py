"""Ctrl-C where the code that it breaks off does not expect it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def not_replaced() -> Iterator[None]:
    """Raise KeyboardInterrupt for an error that an interrupt led to.

    Code that is broken off may fail while it cleans up (omegaconf and hydra do, now and then), and its error then takes
    the place of the interrupt.
    """
    try:
        yield
    except Exception as error:
        before = error.__context__
        while before is not None:
            if isinstance(before, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            before = before.__context__
        raise


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
