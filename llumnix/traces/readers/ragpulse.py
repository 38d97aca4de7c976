"""RAGPulse: Mooncake's keys plus `session_id`, times in seconds written as strings."""

from __future__ import annotations

from llumnix.traces.readers.row import Row, seconds, tokens
from llumnix.traces.readers.tables import JsonFormat


def _row(item: dict[str, object]) -> Row:
    return Row(seconds(item["timestamp"]), tokens(item["input_length"]), tokens(item["output_length"]))


FORMAT = JsonFormat("RAGPulse JSONL", {"session_id", "timestamp", "input_length", "output_length"}.issubset, _row)
