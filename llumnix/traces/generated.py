"""Power-law lengths by the recipe of the published artifact (Table 1: Short, Medium, Long). No arrivals here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llumnix.errors import ConfigError
from llumnix.request import IntArray
from llumnix.traces.base import Lengths, Rng, Stream, Streams, Trace, artifact_stream

EXPONENT_OF_MEAN = {128: 2.0, 256: 1.5, 512: 1.15, 1024: 1.0005}
"""Exponent of the power law for each mean length in tokens; the artifact defines it for these means only."""


@dataclass(kw_only=True, slots=True)
class GeneratedTrace(Trace):
    """Prompt and output lengths drawn independently from truncated power laws, capped at `max_tokens` (§6.1)."""

    mean_prompt_tokens: int
    mean_output_tokens: int
    max_tokens: int = 6144

    def __post_init__(self) -> None:
        self.check()
        for key in ("mean_prompt_tokens", "mean_output_tokens"):
            mean = getattr(self, key)
            if mean not in EXPONENT_OF_MEAN:
                known = ", ".join(map(str, EXPONENT_OF_MEAN))
                raise ConfigError(f"trace.{key} must be one of {known} (means with a known exponent), got {mean}.")
        if self.max_tokens < 1:
            raise ConfigError(f"trace.max_tokens must be at least 1, got {self.max_tokens}.")

    def streams(self, seed: int) -> Streams:
        """As Trace.streams, but here the artifact draws lengths and then arrival gaps from one and the same stream."""
        if self.stream is Stream.artifact:
            shared = artifact_stream(seed)
            return Streams(seed, shared, shared)
        return Trace.streams(self, seed)

    def draw(self, num_requests: int, streams: Streams) -> Lengths:
        """Draw all prompt lengths first and all output lengths next, as the artifact does."""
        prompt_tokens = power_law_tokens(self.mean_prompt_tokens, self.max_tokens, num_requests, streams.lengths)
        output_tokens = power_law_tokens(self.mean_output_tokens, self.max_tokens, num_requests, streams.lengths)
        return Lengths(
            prompt_tokens, output_tokens, None, label=self.label, format="generated power law", rows_in=num_requests
        )


def power_law_tokens(mean_tokens: int, max_tokens: int, count: int, rng: Rng) -> IntArray:
    """Ranks 1..2m-1 with p(r) proportional to r^-a, scaled so that the sample's mean is m, rounded up, capped.

    The scaling puts all lengths on a lattice whose step is the scale factor; Table 1 has it, so it is kept.
    """
    ranks = np.arange(1, 2 * mean_tokens)
    weights = ranks ** -EXPONENT_OF_MEAN[mean_tokens]
    drawn = rng.choice(ranks, size=count, p=weights / weights.sum())
    scaled: IntArray = np.ceil(drawn * (mean_tokens / drawn.mean())).astype(np.int64)
    return np.minimum(scaled, max_tokens, out=scaled)
