"""ShareGPT conversations (JSON lines or one JSON array): turn 0 is the prompt, turn 1 the output, as in the artifact.

Holds text and no times, so lengths depend on a tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llumnix.errors import TraceError
from llumnix.traces.readers.row import BROKEN, Row
from llumnix.traces.readers.tables import JsonFormat

ONE_TURN = Row(None, 0, 0, unusable="fewer than two turns")
_WORD = re.compile(r"\w+|[^\w\s]")


def is_conversation(item: dict[str, object]) -> bool:
    """Whether an object is a ShareGPT conversation."""
    return "conversations" in item


def sharegpt_format(tokenizer: str | None) -> JsonFormat:
    """The format with a tokenizer loaded; TraceError if there is none."""
    count_tokens = _token_counter(tokenizer)

    def row(item: dict[str, object]) -> Row:
        turns = item["conversations"]
        if not isinstance(turns, list):
            return BROKEN
        if len(turns) < 2:
            return ONE_TURN
        return Row(None, count_tokens(turns[0]["value"]), count_tokens(turns[1]["value"]))

    counted = "words and punctuation counted as tokens" if tokenizer == "words" else f"tokenizer {tokenizer}"
    return JsonFormat(f"ShareGPT JSON, {counted}", is_conversation, row)


def _token_counter(tokenizer: str | None) -> Callable[[str], int]:
    if tokenizer is None:
        raise TraceError(
            "ShareGPT holds text, so its lengths need a tokenizer: type trace.tokenizer=PATH_OR_NAME of a Hugging Face "
            "tokenizer, or trace.tokenizer=words for an approximate count."
        )
    if tokenizer == "words":
        return lambda text: len(_WORD.findall(text))
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise TraceError(
            f"trace.tokenizer={tokenizer} needs the transformers package: type pip install transformers, "
            "or trace.tokenizer=words for an approximate count."
        ) from None
    try:
        encode = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise TraceError(
            f"trace.tokenizer={tokenizer} is not a tokenizer that can be loaded ({str(error).splitlines()[0]})."
        ) from None
    return lambda text: len(encode(text).input_ids)
