"""Splitwise-sim: arrival times in seconds."""

from __future__ import annotations

from collections.abc import Sequence

from llumnix.traces.readers.row import Row, seconds, tokens
from llumnix.traces.readers.tables import CsvFormat


def _row(cells: Sequence[str | None]) -> Row:
    stamp, prompt, output = cells
    return Row(seconds(stamp), tokens(prompt), tokens(output))


FORMAT = CsvFormat("Splitwise-sim CSV", ("arrival_timestamp", "prompt_size", "token_size"), _row)
