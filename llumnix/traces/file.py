"""Requests from a trace file in any of the formats under llumnix/traces/readers, filtered and counted."""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np

from llumnix.errors import ConfigError, TraceError
from llumnix.request import FloatArray, IntArray
from llumnix.traces.base import ARTIFACT_SEED, Lengths, Rng, Stream, Streams, Trace

LATE_ROWS_IN_A_ROW = 10_000
"""Reading stops after this many consecutive rows past the time window: traces are sorted but for single inversions."""


class TooLong(StrEnum):
    """What becomes of a prompt or an output longer than max_tokens."""

    clip = "clip"
    drop = "drop"


@dataclass(kw_only=True, slots=True)
class FileTrace(Trace):
    """A trace file (plain or gzip); its format is detected by column names or keys.

    Reading stops after `num_requests` usable rows. Filters: `model` and `log_type` keep equal values only,
    `drop_failed` leaves out rows without tokens (otherwise they get one, as on the artifact's server), `max_tokens`
    bounds prompt and output each, `max_total_tokens` their sum, [start_s, end_s) is a window in seconds after the
    file's first row. `sample` draws rows at random from the whole file, without their times. `stamp_resolution_s`
    spreads times over the tick of a coarse clock. `tokenizer` is for formats that hold text: a Hugging Face name or
    path, or `words` for an approximate count.
    """

    path: str | None = None
    model: str | None = None
    log_type: str | None = None
    drop_failed: bool = True
    max_tokens: int | None = None
    max_total_tokens: int | None = None
    too_long: TooLong = TooLong.clip
    start_s: float = 0.0
    end_s: float | None = None
    stamp_resolution_s: float = 0.0
    sample: bool = False
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        self.check()
        self.check_reading()
        if self.path is None:
            raise ConfigError("trace.path is not set: type trace.path=FILE.")

    def check_reading(self) -> None:
        """Raise ConfigError if a reading option is out of range."""
        for key, limit in (("max_tokens", self.max_tokens), ("max_total_tokens", self.max_total_tokens)):
            if limit is not None and limit < 1:
                raise ConfigError(f"trace.{key} must be at least 1 or null, got {limit}.")
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise ConfigError(f"trace.start_s must be 0 or a positive number of seconds, got {self.start_s}.")
        if self.end_s is not None and not self.end_s > self.start_s:
            raise ConfigError(f"trace.end_s must be later than trace.start_s={self.start_s}, got {self.end_s}.")
        if not (math.isfinite(self.stamp_resolution_s) and self.stamp_resolution_s >= 0):
            raise ConfigError(f"trace.stamp_resolution_s must be 0 or positive, got {self.stamp_resolution_s}.")

    def draw(self, num_requests: int, streams: Streams) -> Lengths:
        """The first `num_requests` usable rows, or as many at random; TraceError if the file has none."""
        columns = self._read(None if self.sample else num_requests, streams.lengths)
        if not columns.prompt_tokens:
            reasons = ", ".join(f"{count} × {reason}" for reason, count in columns.dropped.items())
            raise TraceError(
                f"{self.path} has no usable row ({columns.format}; {reasons or 'no rows at all'}): "
                "check the file and the filters trace.*."
            )
        prompt_tokens = np.frombuffer(columns.prompt_tokens, dtype=np.int64)
        output_tokens = np.frombuffer(columns.output_tokens, dtype=np.int64)
        stamps = np.frombuffer(columns.stamp_s, dtype=np.float64)
        dropped = dict(columns.dropped)
        inversions = int(np.count_nonzero(np.diff(stamps) < 0)) if columns.stamped else 0
        stamp_s: FloatArray | None = None
        if self.sample:
            chosen = self._sample(len(prompt_tokens), num_requests, streams)
            if len(chosen) < len(prompt_tokens):
                dropped["not in the sample"] = len(prompt_tokens) - len(chosen)
            prompt_tokens, output_tokens = prompt_tokens[chosen], output_tokens[chosen]
        elif columns.stamped:
            if self.stamp_resolution_s:
                stamps = stamps + streams.lengths.uniform(0.0, self.stamp_resolution_s, len(stamps))
            order = np.argsort(stamps, kind="stable")
            prompt_tokens, output_tokens = prompt_tokens[order], output_tokens[order]
            stamp_s = stamps[order] - stamps[order[0]]
        return Lengths(
            prompt_tokens,
            output_tokens,
            stamp_s,
            label=self.label or Path(self.path or "").name,
            format=columns.format,
            rows_in=columns.rows_in,
            dropped=dropped,
            inversions=inversions,
        )

    def _sample(self, rows: int, num_requests: int, streams: Streams) -> IntArray:
        """Row numbers; on the artifact's stream those that its client draws with Python's generator for BurstGPT."""
        count = min(rows, num_requests)
        if self.stream is Stream.artifact and streams.seed == 0:
            python_rng = random.Random(ARTIFACT_SEED)
            chosen = python_rng.sample(range(rows), count)
            python_rng.shuffle(chosen)
            return np.asarray(chosen, dtype=np.int64)
        return np.asarray(streams.lengths.permutation(rows)[:count], dtype=np.int64)

    def _read(self, limit: int | None, rng: Rng) -> _Columns:
        # The readers are imported here: a run on generated lengths needs none of them.
        from llumnix.traces.readers.detect import open_trace
        from llumnix.traces.readers.row import Unusable

        path = Path(self.path or "")
        columns = _Columns()
        first_s: float | None = None
        late_in_a_row = 0
        with open_trace(path, tokenizer=self.tokenizer, rng=rng) as opened:
            columns.format = opened.format
            for row in opened.rows:
                columns.rows_in += 1
                if isinstance(row, Unusable):
                    columns.dropped[row.value] += 1
                    continue
                self._check_columns(row.model, row.log_type, row.stamp_s)
                since_first_s = 0.0
                if row.stamp_s is None:
                    columns.stamped = False
                else:
                    first_s = row.stamp_s if first_s is None else first_s
                    since_first_s = row.stamp_s - first_s
                prompt_tokens, output_tokens = row.prompt_tokens, row.output_tokens
                reason = self._reason_to_drop(row.model, row.log_type, since_first_s, prompt_tokens, output_tokens)
                if reason is not None:
                    columns.dropped[reason] += 1
                    late_in_a_row = late_in_a_row + 1 if self.end_s is not None and since_first_s >= self.end_s else 0
                    if late_in_a_row == LATE_ROWS_IN_A_ROW:
                        break
                    continue
                late_in_a_row = 0
                ceiling = self.max_tokens or max(prompt_tokens, output_tokens, 1)
                columns.prompt_tokens.append(min(max(prompt_tokens, 1), ceiling))
                columns.output_tokens.append(min(max(output_tokens, 1), ceiling))
                columns.stamp_s.append(since_first_s)
                if len(columns.prompt_tokens) == limit:
                    break
        return columns

    def _check_columns(self, model: str | None, log_type: str | None, stamp_s: float | None) -> None:
        """Refuse a filter on a column that the file does not have."""
        if self.model is not None and model is None:
            raise TraceError(f"{self.path} does not tell models apart: type trace.model=null.")
        if self.log_type is not None and log_type is None:
            raise TraceError(f"{self.path} has no log types: type trace.log_type=null.")
        if stamp_s is None and (self.start_s > 0 or self.end_s is not None):
            raise TraceError(f"{self.path} has no time stamps: leave out trace.start_s and trace.end_s.")

    def _reason_to_drop(
        self, model: str | None, log_type: str | None, since_first_s: float, prompt_tokens: int, output_tokens: int
    ) -> str | None:
        if since_first_s < self.start_s or (self.end_s is not None and since_first_s >= self.end_s):
            return "outside the time window"
        if self.model is not None and model != self.model:
            return "other model"
        if self.log_type is not None and log_type != self.log_type:
            return "other log type"
        if self.drop_failed and output_tokens < 1:
            return "no output token"
        if self.drop_failed and prompt_tokens < 1:
            return "no prompt token"
        longest = max(prompt_tokens, output_tokens)
        if self.max_tokens is not None and self.too_long is TooLong.drop and longest > self.max_tokens:
            return "longer than max_tokens"
        if self.max_total_tokens is not None and prompt_tokens + output_tokens > self.max_total_tokens:
            return "longer than max_total_tokens"
        return None


@dataclass(slots=True)
class _Columns:
    """What has been read so far; `stamped` is False as soon as one usable row has no time."""

    format: str = ""
    rows_in: int = 0
    prompt_tokens: array[int] = field(default_factory=lambda: array("q"))
    output_tokens: array[int] = field(default_factory=lambda: array("q"))
    stamp_s: array[float] = field(default_factory=lambda: array("d"))
    stamped: bool = True
    dropped: Counter[str] = field(default_factory=Counter)
