"""What an instance has to tell its front end, numbered, kept until the front end says that it has it."""

from __future__ import annotations

import threading
import time
from collections import deque

from llumnix.cluster.real.messages import Item


class Outbox:
    """Filled by the engine thread, emptied by polls. Two answers are at least `gather_s` apart.

    A step that is longer than that is never kept waiting; of shorter ones several go into one answer, which spares the
    engine thread the company of the threads that answer.
    """

    def __init__(self, gather_s: float = 0.0) -> None:
        self._gather_s = gather_s
        self._answered_s = 0.0
        self._items: deque[Item] = deque()
        self._first = 1  # number of the first item kept
        self._ready = threading.Condition()

    def put(self, items: list[Item]) -> None:
        """Add items and wake the poll that waits."""
        if not items:
            return
        with self._ready:
            self._items.extend(items)
            self._ready.notify_all()

    def after(self, number: int, wait_s: float) -> tuple[int, list[Item]]:
        """Drop what came up to `number`, wait for something newer, and return the last number and all that is newer."""
        with self._ready:
            while self._items and self._first <= number:
                self._items.popleft()
                self._first += 1
            if not self._items:
                self._ready.wait(wait_s)
        time.sleep(max(0.0, self._answered_s + self._gather_s - time.monotonic()))
        self._answered_s = time.monotonic()
        with self._ready:
            return self._first + len(self._items) - 1, list(self._items)
