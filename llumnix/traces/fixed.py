"""Requests that are all alike: lengths are what is set and nothing else. No arrivals here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llumnix.errors import ConfigError
from llumnix.traces.base import Lengths, Streams, Trace


@dataclass(kw_only=True, slots=True)
class FixedTrace(Trace):
    """Every prompt has `prompt_tokens` tokens and every output `output_tokens`.

    With `total_prompt_tokens` there are as many requests as have so many tokens together.
    """

    prompt_tokens: int
    output_tokens: int
    total_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        self.check()
        for key in ("prompt_tokens", "output_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(f"trace.{key} must be at least 1, got {getattr(self, key)}.")
        if self.total_prompt_tokens is not None and self.total_prompt_tokens < self.prompt_tokens:
            raise ConfigError(
                f"trace.total_prompt_tokens must not be below trace.prompt_tokens, got {self.total_prompt_tokens} < "
                f"{self.prompt_tokens}."
            )

    def draw(self, num_requests: int, streams: Streams) -> Lengths:
        """The same two lengths `num_requests` times, or fewer if that is all there is; nothing is drawn."""
        if self.total_prompt_tokens is not None:
            num_requests = min(num_requests, self.total_prompt_tokens // self.prompt_tokens)
        prompt_tokens = np.full(num_requests, self.prompt_tokens, dtype=np.int64)
        output_tokens = np.full(num_requests, self.output_tokens, dtype=np.int64)
        return Lengths(prompt_tokens, output_tokens, None, label=self.label, format="fixed", rows_in=num_requests)
