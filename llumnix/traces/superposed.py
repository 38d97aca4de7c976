"""A recorded trace scaled up: as many copies of a file side by side as give the requests asked for."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np

from llumnix.traces.base import Lengths, Streams
from llumnix.traces.file import FileTrace


@dataclass(kw_only=True, slots=True)
class SuperposedTrace(FileTrace):
    """k copies of the whole file at once, k the least number that gives `num_requests`; of its end the rest is cut.

    The rate follows that of the recording, k times as high: a recorded gap becomes k gaps of equal length. Each copy
    begins elsewhere in the recorded lengths, so that no length comes k times in a row; which lengths went with which
    hour is lost thereby.
    """

    def draw(self, num_requests: int, streams: Streams) -> Lengths:
        """`num_requests` rows; TraceError if the file has none."""
        once = FileTrace.draw(self, sys.maxsize, streams)  # every row
        rows = len(once.prompt_tokens)
        copies = -(-num_requests // rows)
        row, copy = (ids[:num_requests] for ids in np.divmod(np.arange(rows * copies), copies))
        lengths_of = (row + copy * (rows // copies)) % rows
        stamp_s = once.stamp_s
        if stamp_s is not None:
            gap_s = np.diff(stamp_s, append=stamp_s[-1])
            stamp_s = stamp_s[row] + gap_s[row] * (copy / copies)
        return replace(
            once,
            prompt_tokens=once.prompt_tokens[lengths_of],
            output_tokens=once.output_tokens[lengths_of],
            stamp_s=stamp_s,
            label=f"{once.label} x {copies}",
            rows_in=once.rows_in * copies - (rows * copies - num_requests),
            dropped={reason: count * copies for reason, count in once.dropped.items()},
        )
