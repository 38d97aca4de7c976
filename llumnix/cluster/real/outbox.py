"""What an instance has to tell its front end, numbered, kept until the front end says that it has it."""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice

from llumnix.cluster.real.messages import Item


class Outbox:
    """Filled by the engine thread and by moves, read by whoever carries the items. Thread-safe."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._first = 1  # number of the first item kept
        self._ready = threading.Condition()

    def put(self, items: list[Item]) -> None:
        """Add items and wake who waits for them."""
        if not items:
            return
        with self._ready:
            self._items.extend(items)
            self._ready.notify_all()

    def clear(self) -> None:
        """Forget all items; numbers go on, so that a late answer to an old one means no new one."""
        with self._ready:
            self._first += len(self._items)
            self._items.clear()

    def drop(self, number: int) -> None:
        """Forget the items up to a number: they have arrived."""
        with self._ready:
            while self._items and self._first <= number:
                self._items.popleft()
                self._first += 1

    def unheard(self) -> bool:
        """Tell whether there are items that have not arrived, as far as is known."""
        return bool(self._items)

    def after(self, number: int, wait_s: float = 0.0) -> tuple[int, list[Item]]:
        """Return the number of the last item and all items after `number`; waits for one if there is none yet."""
        with self._ready:
            if wait_s and self._first + len(self._items) - 1 <= number:
                self._ready.wait(wait_s)
            last = self._first + len(self._items) - 1
            return last, list(islice(self._items, max(0, number + 1 - self._first), None))
