"""Which format a trace file has, by its column names or keys, and its rows. Filters nothing."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from llumnix.errors import TraceError
from llumnix.traces.readers import azure, bailian, burstgpt, mooncake, ragpulse, servegen, sharegpt, splitwise, vidur
from llumnix.traces.readers.row import Row
from llumnix.traces.readers.source import open_text
from llumnix.traces.readers.tables import JsonFormat, json_array, json_lines

CSV_FORMATS = (azure.FORMAT, burstgpt.FORMAT, vidur.FORMAT, splitwise.FORMAT)
JSON_FORMATS = (bailian.FORMAT, ragpulse.FORMAT, mooncake.FORMAT)
"""In this order: the first two have all keys of the third."""

_FIRST_OBJECTS = 100
_SNIFF_CHARS = 4096


@dataclass(frozen=True, slots=True)
class OpenedTrace:
    """The detected format of an open file, and its rows from the first one on."""

    format: str
    rows: Iterator[Row]


@contextmanager
def open_trace(path: Path, *, tokenizer: str | None, seed: int) -> Iterator[OpenedTrace]:
    """Detect the format and start reading; TraceError if the file is missing, empty, damaged or of no known format.

    `seed` serves formats that describe distributions instead of requests.
    """
    if servegen.is_dataset(path):
        path = servegen.sibling(path, "trace.csv")
    with open_text(path) as text:
        first = _first_character(text)
        if first == "[":
            yield _open_json(json_array(text), path, tokenizer)
        elif first == "{":
            yield _open_json(json_lines(text), path, tokenizer)
        elif first:
            with _open_csv(text, path, seed) as opened:
                yield opened
        else:
            raise TraceError(f"{path} is empty: check trace.path.")


def _first_character(text: TextIO) -> str:
    """The first character that is no white space, "" in an empty file; leaves the position at the start of its line."""
    while True:
        position = text.tell()
        piece = text.readline(_SNIFF_CHARS)
        if not piece or piece.strip():
            text.seek(position)
            return piece.strip()[:1]


def _open_json(objects: Iterator[object], path: Path, tokenizer: str | None) -> OpenedTrace:
    looked_at: list[object] = []
    for item in islice(objects, _FIRST_OBJECTS):
        looked_at.append(item)
        if isinstance(item, dict):
            found = _json_format(item, path, tokenizer)
            return OpenedTrace(found.name, found.rows(chain(looked_at, objects)))
    raise TraceError(f"{path} starts like JSON, but its first {len(looked_at)} records are no JSON objects.")


def _json_format(item: dict[str, object], path: Path, tokenizer: str | None) -> JsonFormat:
    if sharegpt.is_conversation(item):
        return sharegpt.sharegpt_format(tokenizer)
    for candidate in JSON_FORMATS:
        if candidate.fits(item):
            return candidate
    raise _unknown(path, "keys", list(item))


@contextmanager
def _open_csv(text: TextIO, path: Path, seed: int) -> Iterator[OpenedTrace]:
    records = csv.reader(text)
    try:
        header = [name.strip() for name in next(records)]
    except (csv.Error, StopIteration):
        raise TraceError(f"{path} is neither CSV nor JSON.") from None
    if servegen.is_bin(header):
        dataset_path = servegen.sibling(path, "dataset.json")
        with open_text(dataset_path) as dataset:
            windows = servegen.read_windows(dataset, dataset_path)
        yield OpenedTrace(servegen.NAME, servegen.rows(chain([header], records), windows, seed))
        return
    for candidate in CSV_FORMATS:
        if candidate.fits(header):
            yield OpenedTrace(candidate.name, candidate.rows(header, records))
            return
    raise _unknown(path, "columns", header)


def _unknown(path: Path, kind: str, names: list[str]) -> TraceError:
    shown = ", ".join(name[:40] for name in names[:8])
    tables = "; ".join(f"{known.name} ({', '.join(known.required)})" for known in CSV_FORMATS)
    objects = ", ".join(known.name for known in JSON_FORMATS)
    return TraceError(
        f"{path} has {kind} {shown}, which fit no known format: "
        f"{tables}; {objects}; ShareGPT JSON (conversations); {servegen.NAME} (six columns without a header)."
    )
