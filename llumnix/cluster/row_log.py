"""Rows that a run adds one by one and keeps to its end: in arrays they take a tenth of the memory of tuples."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class RowLog:
    """A table that grows by rows and is read by columns; `columns` gives the type of each.

    add() takes one row as a tuple, at the price of appending it to a list. Rows turn into arrays in pack(), which is to
    be called now and then: whoever never does has the memory of the tuples, and the same columns.
    """

    def __init__(self, **columns: type) -> None:
        self._columns = columns
        self._fresh: list[tuple[Any, ...]] = []
        self._packed: dict[str, list[Array]] = {name: [] for name in columns}
        self.add = self._fresh.append

    def pack(self) -> None:
        """Put the rows added since the last call into arrays."""
        if self._fresh:
            for (name, kind), values in zip(self._columns.items(), zip(*self._fresh, strict=True), strict=True):
                self._packed[name].append(np.array(values, dtype=kind))
            self._fresh.clear()

    def columns(self) -> dict[str, Array]:
        """Return each column, all rows in the order in which they were added."""
        self.pack()
        return {
            name: np.concatenate(self._packed[name]) if self._packed[name] else np.array([], dtype=kind)
            for name, kind in self._columns.items()
        }
