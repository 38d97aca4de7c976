"""Read a trace file piece by piece, filter its rows and count what is left out. The formats are in `readers`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llumnix.errors import TraceError
from llumnix.request import FloatArray, IntArray
from llumnix.traces.readers.detect import open_trace
from llumnix.traces.readers.row import Row

BATCH_ROWS = 32_768

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Which rows are kept; None means that anything goes. Times are in s after the first row of the file."""

    model: str | None = None
    log_type: str | None = None
    drop_failed: bool = True
    longest_tokens: int | None = None
    longest_total_tokens: int | None = None
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """The rows kept, in file order: rows_in == len(prompt_tokens) + sum(dropped.values())."""

    format: str
    prompt_tokens: IntArray
    output_tokens: IntArray
    stamp_s: FloatArray | None
    rows_in: int
    dropped: dict[str, int]


def read(path: Path, keep: RowFilter, *, limit: int | None, tokenizer: str | None, seed: int) -> Columns:
    """The first `limit` rows that pass `keep` (None: all); TraceError if the file cannot be read or has no such row.

    `seed` serves formats that describe distributions instead of requests. The last files read are remembered, since
    the jobs of a sweep read the same one; the arrays are therefore not to be changed.
    """
    try:
        changed_ns = path.stat().st_mtime_ns
    except OSError:
        changed_ns = 0
    return _read(path, changed_ns, keep, limit, tokenizer, seed)


@lru_cache(maxsize=2)
def _read(path: Path, changed_ns: int, keep: RowFilter, limit: int | None, tokenizer: str | None, seed: int) -> Columns:
    prompts: list[IntArray] = []
    outputs: list[IntArray] = []
    stamps: list[FloatArray] = []
    dropped: Counter[str] = Counter()
    rows_in = kept = 0
    first_s = np.nan
    with open_trace(path, tokenizer=tokenizer, seed=seed) as opened:
        for rows in _batches(opened.rows, BATCH_ROWS if limit is None else min(max(limit, 64), BATCH_ROWS)):
            batch = _Batch(rows, path, keep, first_s)
            first_s = batch.first_s
            read_rows = len(rows) if limit is None else batch.cut_after(limit - kept)
            good = batch.good[:read_rows]
            rows_in += read_rows
            kept += int(np.count_nonzero(good))
            for reason, failed in batch.failed.items():
                dropped[reason] += int(np.count_nonzero(failed[:read_rows]))
            prompts.append(batch.prompt_tokens[:read_rows][good])
            outputs.append(batch.output_tokens[:read_rows][good])
            stamps.append(batch.since_first_s[:read_rows][good])
            if kept == limit or (keep.end_s is not None and batch.begins_after(keep.end_s)):
                break
    dropped = +dropped
    if not kept:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in dropped.items())
        raise TraceError(
            f"{path} has no usable row ({opened.format}; {reasons or 'no rows at all'}): "
            "check the file and the filters trace.*."
        )
    stamp_s = np.concatenate(stamps)
    return Columns(
        format=opened.format,
        prompt_tokens=np.concatenate(prompts),
        output_tokens=np.concatenate(outputs),
        stamp_s=None if np.isnan(stamp_s).any() else stamp_s,
        rows_in=rows_in,
        dropped=dict(dropped),
    )


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while batch := list(islice(rows, size)):
        yield batch


class _Batch:
    """Consecutive rows as columns; `good` marks those to keep, `failed` the others by the first reason that applies."""

    def __init__(self, rows: list[Row], path: Path, keep: RowFilter, first_s: float) -> None:
        stamps, prompts, outputs, models, log_types, unusable = zip(*rows, strict=True)
        self.prompt_tokens: IntArray = np.array(prompts, dtype=np.int64)
        self.output_tokens: IntArray = np.array(outputs, dtype=np.int64)
        stamp_s: FloatArray = np.array(stamps, dtype=np.float64)  # None becomes nan
        if np.isnan(first_s) and not np.isnan(stamp_s).all():
            first_s = float(stamp_s[~np.isnan(stamp_s)][0])
        self.first_s = first_s
        self.since_first_s: FloatArray = stamp_s - first_s
        self.good: BoolArray = np.ones(len(rows), dtype=bool)
        self.failed: dict[str, BoolArray] = {}

        for reason in {reason for reason in unusable if reason is not None}:
            self._fail(reason, np.array([other == reason for other in unusable]))
        if keep.start_s > 0 or keep.end_s is not None:
            self._require(~np.isnan(stamp_s), f"{path} has no time stamps: leave out trace.start_s and trace.end_s.")
            end_s = np.inf if keep.end_s is None else keep.end_s
            inside = (self.since_first_s >= keep.start_s) & (self.since_first_s < end_s)
            self._fail("outside the time window", ~inside)
        if keep.model is not None:
            known = np.array([model is not None for model in models])
            self._require(known, f"{path} does not tell models apart: type trace.model=null.")
            self._fail("other model", np.array([model != keep.model for model in models]))
        if keep.log_type is not None:
            known = np.array([log_type is not None for log_type in log_types])
            self._require(known, f"{path} has no log types: type trace.log_type=null.")
            self._fail("other log type", np.array([log_type != keep.log_type for log_type in log_types]))
        if keep.drop_failed:
            self._fail("no output token", self.output_tokens < 1)
            self._fail("no prompt token", self.prompt_tokens < 1)
        if keep.longest_tokens is not None:
            longest = np.maximum(self.prompt_tokens, self.output_tokens)
            self._fail("longer than max_tokens", longest > keep.longest_tokens)
        if keep.longest_total_tokens is not None:
            total = self.prompt_tokens + self.output_tokens
            self._fail("longer than max_total_tokens", total > keep.longest_total_tokens)

    def _fail(self, reason: str, failed: BoolArray) -> None:
        self.failed[reason] = self.good & failed
        self.good = self.good & ~failed

    def _require(self, known: BoolArray, otherwise: str) -> None:
        """Refuse to filter by a column that the file does not have."""
        if not known[self.good].all():
            raise TraceError(otherwise)

    def begins_after(self, end_s: float) -> bool:
        """Whether all times are past the window. Traces are sorted but for single inversions, so no more follows."""
        return bool((self.since_first_s >= end_s).any() and not (self.since_first_s < end_s).any())

    def cut_after(self, wanted: int) -> int:
        """How many rows have to be read for `wanted` good ones."""
        good = np.flatnonzero(self.good)
        return len(self.good) if len(good) < wanted else int(good[wanted - 1]) + 1
