"""Requests from a trace file in any of the formats under llumnix/traces/readers. Arrivals are another matter."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from llumnix.errors import ConfigError
from llumnix.request import IntArray
from llumnix.traces.base import ARTIFACT_SEED, Lengths, Stream, Streams, Trace


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
        # Imported here, since a run on generated lengths needs no reader.
        from llumnix.traces.reading import RowFilter, read

        path = Path(self.path or "").expanduser()
        keep = RowFilter(
            model=self.model,
            log_type=self.log_type,
            drop_failed=self.drop_failed,
            longest_tokens=self.max_tokens if self.too_long is TooLong.drop else None,
            longest_total_tokens=self.max_total_tokens,
            start_s=self.start_s,
            end_s=self.end_s,
        )
        limit = None if self.sample else num_requests
        rows = read(path, keep, limit=limit, tokenizer=self.tokenizer, seed=streams.seed)
        dropped = dict(rows.dropped)
        stamp_s = None if self.sample else rows.stamp_s
        inversions = 0
        order = np.arange(len(rows.prompt_tokens))
        if self.sample:
            order = self._sampled_rows(len(order), num_requests, streams)
            if len(order) < len(rows.prompt_tokens):
                dropped["not in the sample"] = len(rows.prompt_tokens) - len(order)
        elif stamp_s is not None:
            inversions = int(np.count_nonzero(np.diff(stamp_s) < 0))
            if self.stamp_resolution_s:
                stamp_s = stamp_s + streams.lengths.uniform(0.0, self.stamp_resolution_s, len(stamp_s))
            order = np.argsort(stamp_s, kind="stable")
            stamp_s = stamp_s[order] - stamp_s[order[0]]
        return Lengths(
            np.clip(rows.prompt_tokens[order], 1, self.max_tokens),
            np.clip(rows.output_tokens[order], 1, self.max_tokens),
            stamp_s,
            label=self.label or path.name,
            format=rows.format,
            rows_in=rows.rows_in,
            dropped=dropped,
            inversions=inversions,
        )

    def _sampled_rows(self, rows: int, num_requests: int, streams: Streams) -> IntArray:
        """Row numbers; on the artifact's stream those that its client draws with Python's generator for BurstGPT."""
        count = min(rows, num_requests)
        if self.stream is Stream.artifact and streams.seed == 0:
            python_rng = random.Random(ARTIFACT_SEED)
            chosen = python_rng.sample(range(rows), count)
            python_rng.shuffle(chosen)
            return np.array(chosen, dtype=np.int64)
        return np.array(streams.lengths.permutation(rows)[:count], dtype=np.int64)
