"""Records out of CSV and JSON text, one at a time. Which columns mean what is told by the format modules."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TextIO

from llumnix.traces.readers.row import BROKEN, Row

_CHUNK_CHARS = 1 << 20
_LONGEST_OBJECT_CHARS = 1 << 26


@dataclass(frozen=True, slots=True)
class CsvFormat:
    """A CSV format, known by column names; `row` gets the cells of required + optional, None for an absent column."""

    name: str
    required: tuple[str, ...]
    row: Callable[[Sequence[str | None]], Row]
    optional: tuple[str, ...] = ()

    def fits(self, header: Sequence[str]) -> bool:
        """Whether a file with these column names is of this format."""
        return set(self.required) <= set(header)

    def rows(self, header: Sequence[str], records: Iterator[list[str]]) -> Iterator[Row]:
        """All rows after the header."""
        place = {name: index for index, name in enumerate(header)}
        # Absent columns are read from a None that is put behind each record.
        pick = itemgetter(*(place.get(name, -1) for name in self.required + self.optional))
        while True:
            try:
                record: list[Any] = next(records)
                if not record:
                    continue
                record.append(None)
                row = self.row(pick(record))
            except StopIteration:
                return
            except (ValueError, TypeError, IndexError, OverflowError, csv.Error):
                row = BROKEN
            yield row


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """A format of JSON objects, known by their keys."""

    name: str
    fits: Callable[[dict[str, object]], bool]
    row: Callable[[dict[str, object]], Row]

    def rows(self, objects: Iterator[object]) -> Iterator[Row]:
        """One row per object; None stands for text that is no JSON."""
        for item in objects:
            try:
                yield self.row(item) if isinstance(item, dict) else BROKEN
            except (ValueError, TypeError, KeyError, IndexError, OverflowError):
                yield BROKEN


def json_lines(text: TextIO) -> Iterator[object]:
    """One object per line, None for a line that is no JSON; empty lines are skipped."""
    for line in text:
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield None


def json_array(text: TextIO) -> Iterator[object]:
    """The elements of one large JSON array, read piece by piece; one None where the rest is no JSON."""
    decoder = json.JSONDecoder()
    pending, at, ended = text.read(_CHUNK_CHARS).lstrip().removeprefix("["), 0, False
    while True:
        while at < len(pending) and pending[at] in " \t\r\n,":
            at += 1
        if at < len(pending) and pending[at] == "]":
            return
        try:
            item, at = decoder.raw_decode(pending, at)
        except (ValueError, RecursionError):
            if ended or len(pending) - at > _LONGEST_OBJECT_CHARS:
                if at < len(pending):
                    yield None
                return
            more = text.read(max(_CHUNK_CHARS, len(pending) - at))
            pending, at, ended = pending[at:] + more, 0, not more
            continue
        yield item
