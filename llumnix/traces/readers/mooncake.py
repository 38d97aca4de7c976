"""Mooncake: times in milliseconds. (Bailian and RAGPulse have the same keys in other units, and are asked first.)"""

from __future__ import annotations

from llumnix.traces.readers.row import Row, seconds, tokens
from llumnix.traces.readers.tables import JsonFormat


def _row(item: dict[str, object]) -> Row:
    return Row(seconds(item["timestamp"]) / 1000, tokens(item["input_length"]), tokens(item["output_length"]))


FORMAT = JsonFormat("Mooncake JSONL", {"timestamp", "input_length", "output_length"}.issubset, _row)
