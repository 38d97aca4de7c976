"""Vidur, Sarathi and Etalon: lengths with or without arrival times in seconds."""

from __future__ import annotations

from collections.abc import Sequence

from llumnix.traces.readers.row import Row, seconds, tokens
from llumnix.traces.readers.tables import CsvFormat


def _row(cells: Sequence[str | None]) -> Row:
    prompt, output, stamp = cells
    return Row(None if stamp is None else seconds(stamp), tokens(prompt), tokens(output))


FORMAT = CsvFormat("Vidur CSV", ("num_prefill_tokens", "num_decode_tokens"), _row, optional=("arrived_at",))
