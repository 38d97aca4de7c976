"""BurstGPT, all releases (the third inserts two columns), and the artifact's extract. Failed rows have 0 tokens."""

from __future__ import annotations

from collections.abc import Sequence

from llumnix.traces.readers.row import Row, seconds, tokens
from llumnix.traces.readers.tables import CsvFormat


def _row(cells: Sequence[str | None]) -> Row:
    prompt, output, stamp, model, log_type = cells
    return Row(None if stamp is None else seconds(stamp), tokens(prompt), tokens(output), model, log_type)


FORMAT = CsvFormat(
    "BurstGPT CSV", ("Request tokens", "Response tokens"), _row, optional=("Timestamp", "Model", "Log Type")
)
