"""Whether this process stood still: on a machine that does others' work, time limits of tests run out by themselves."""

from __future__ import annotations

import threading
import time
from types import TracebackType

LOOK_S = 0.01


class Standstill:
    """As long as it is entered, a thread wakes every 10 ms; `longest_s` is the longest that it was late."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Standstill:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            begun_s = time.monotonic()
            self._over.wait(LOOK_S)
            self.longest_s = max(self.longest_s, time.monotonic() - begun_s - LOOK_S)
