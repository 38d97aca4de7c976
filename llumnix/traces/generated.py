"""Power-law lengths by the recipe of the published artifact (Table 1: Short, Medium, Long). No arrivals here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llumnix.errors import ConfigError
from llumnix.request import FloatArray, IntArray
from llumnix.traces.base import ARTIFACT_SEED, Lengths, Rng, Stream, Streams, Trace, artifact_stream

EXPONENT_OF_MEAN = {128: 2.0, 256: 1.5, 512: 1.15, 1024: 1.0005}
"""Exponent of the power law for each mean length in tokens; the artifact defines it for these means only."""

FIRST_TOKEN_ID, LAST_TOKEN_ID = 10, 32000
"""The artifact's client draws the tokens of its prompts from these, both included: LLaMA's vocabulary and one more."""


@dataclass(kw_only=True, slots=True)
class GeneratedTrace(Trace):
    """Prompt and output lengths drawn independently from truncated power laws, capped at `max_tokens` (§6.1).

    `class_stream`: what decides who is of high priority. artifact: with seed 0 the artifact's client, for every repeat
    alike, as its one seed does; independent: a generator of its own, anew for each repeat.
    """

    mean_prompt_tokens: int
    mean_output_tokens: int
    max_tokens: int = 6144
    class_stream: Stream = Stream.independent

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
        published = Stream.artifact is self.stream is self.class_stream and streams.seed == 0
        return Lengths(
            prompt_tokens,
            output_tokens,
            None,
            label=self.label,
            format="generated power law",
            rows_in=num_requests,
            class_draws=artifact_class_draws(prompt_tokens) if published else None,
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


def artifact_class_draws(prompt_tokens: IntArray) -> FloatArray:
    """Return the numbers by which the artifact's client chooses the class of each request, in the order of sending.

    They come out of Python's generator after the ids of all prompt tokens and one number for each session. An id takes
    the upper 15 bits of one of the generator's words, or of the next one where they exceed the range. NumPy has the
    same generator and the same numbers of [0, 1), and needs no loop over tokens.
    """
    ids, width = int(prompt_tokens.sum()), LAST_TOKEN_ID - FIRST_TOKEN_ID + 1
    skip = 32 - width.bit_length()
    rng = np.random.RandomState([ARTIFACT_SEED])  # seeded by an array, as Python's random.seed does it
    while ids:  # as many words as ids are left; those that were too large leave some for another round
        ids -= int(np.count_nonzero(rng.randint(0, 1 << 32, ids, dtype=np.uint32) >> skip < width))
    rng.random_sample(len(prompt_tokens))
    return rng.random_sample(len(prompt_tokens))
