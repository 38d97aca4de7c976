"""Qwen-Bailian: Mooncake's keys plus `chat_id`, times in seconds; `type` (text, search, ...) is the log type."""

from __future__ import annotations

from llumnix.traces.readers.row import Row, seconds, tokens
from llumnix.traces.readers.tables import JsonFormat


def _row(item: dict[str, object]) -> Row:
    return Row(
        seconds(item["timestamp"]),
        tokens(item["input_length"]),
        tokens(item["output_length"]),
        log_type=str(item.get("type", "")),
    )


FORMAT = JsonFormat("Bailian JSONL", {"chat_id", "timestamp", "input_length", "output_length"}.issubset, _row)
