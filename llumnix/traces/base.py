"""What every trace has in common: a name, the rates published for it, and random streams to draw from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from llumnix.errors import ConfigError
from llumnix.request import FloatArray, IntArray

ARTIFACT_SEED = 0xCADE
"""The one seed of the published artifact's client, for Python's and for NumPy's generator alike."""

Rng = np.random.RandomState | np.random.Generator
"""Both have `choice`, `exponential`, `gamma` and `uniform` with the same arguments."""

_LENGTHS, _ARRIVALS = 0, 1


class Stream(StrEnum):
    """Which random numbers a trace and its arrivals are made of."""

    artifact = "artifact"
    """The artifact's client: one legacy NumPy stream, lengths first, arrival gaps next; seed 0 is as published."""
    independent = "independent"
    """A generator of its own for each purpose, so that a change of the lengths leaves the arrivals alone."""


@dataclass(frozen=True, slots=True)
class Streams:
    """The generators of one workload; `lengths` and `arrivals` may be one and the same object, lengths drawn first."""

    seed: int
    lengths: Rng
    arrivals: Rng


@dataclass(frozen=True, slots=True)
class Lengths:
    """A request per row, in the order of sending; rows_in == len(prompt_tokens) + sum(dropped.values()).

    `stamp_s` holds the trace's own times (sorted, first one 0), or None where the source has none. `inversions` counts
    the rows of the source that were stamped earlier than the row before them. `class_draws` holds a number of [0, 1)
    for each request, which is of high priority if that is below their fraction; None where the trace does not say.
    """

    prompt_tokens: IntArray
    output_tokens: IntArray
    stamp_s: FloatArray | None
    label: str
    format: str
    synthetic: bool = False
    rows_in: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    inversions: int = 0
    class_draws: FloatArray | None = None


@dataclass(kw_only=True, slots=True)
class Trace:
    """A source of request lengths; each subclass is its own schema under conf/trace.

    `paper_qps` lists the rates of Figure 11 (requests/s; empty if the paper has none), `migrate_threshold_blocks` the
    freeness (blocks per request) at which the artifact migrates on this trace.
    """

    name: str
    label: str = ""
    paper_qps: list[float] = field(default_factory=list)
    migrate_threshold_blocks: float = 3.0
    stream: Stream = Stream.artifact

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ConfigError if a value of any trace is out of range."""
        for qps in self.paper_qps:
            if not (math.isfinite(qps) and qps > 0):
                raise ConfigError(f"trace.paper_qps must hold positive rates in requests/s, got {qps}.")
        if not math.isfinite(self.migrate_threshold_blocks):
            raise ConfigError(f"trace.migrate_threshold_blocks must be finite, got {self.migrate_threshold_blocks}.")

    def streams(self, seed: int) -> Streams:
        """Generators for `seed`. On the artifact's stream arrivals come first in it, as for its two real data sets."""
        lengths = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_LENGTHS,)))
        if self.stream is Stream.artifact:
            return Streams(seed, lengths, artifact_stream(seed))
        return Streams(seed, lengths, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_ARRIVALS,))))

    def draw(self, num_requests: int, streams: Streams) -> Lengths:
        """At most `num_requests` requests: fewer only where the source is shorter."""
        raise NotImplementedError


def artifact_stream(seed: int) -> np.random.RandomState:
    """The artifact's legacy stream for seed 0, and one of the same kind for any other seed."""
    if seed == 0:
        return np.random.RandomState(ARTIFACT_SEED)
    sequence = np.random.SeedSequence(ARTIFACT_SEED, spawn_key=(seed,))
    return np.random.RandomState(np.random.MT19937(sequence))
