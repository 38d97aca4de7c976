"""Azure LLM inference traces of 2023 and 2024, and the length files of Nanoflow, which have the same header.

Nanoflow writes XXX instead of a time. Times have up to seven fractional digits, with or without an offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from llumnix.traces.readers.row import Row, tokens
from llumnix.traces.readers.tables import CsvFormat

_ORIGIN = datetime(2023, 1, 1, tzinfo=UTC)


def _row(cells: Sequence[str | None]) -> Row:
    stamp, prompt, output = cells
    return Row(None if stamp == "XXX" else _seconds(stamp or ""), tokens(prompt), tokens(output))


def _seconds(stamp: str) -> float:
    time = datetime.fromisoformat(stamp)
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _ORIGIN).total_seconds()


FORMAT = CsvFormat("Azure or Nanoflow CSV", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _row)
