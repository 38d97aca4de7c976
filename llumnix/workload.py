"""A workload from a trace, an arrival process and seeds. Nothing here knows how requests are served."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np

from llumnix.arrivals import Arrivals
from llumnix.errors import ConfigError
from llumnix.request import FloatArray, IntArray, Priority, Workload
from llumnix.traces.base import Trace

REPEAT_JITTER_S = 0.004
"""Standard deviation (s) of the noise that separates two repeats: about that of a client's sleep and a network hop."""

# Keys of the generators drawn from the seed here; the traces use smaller ones (llumnix.traces.base).
_PRIORITY, _JITTER, _DISPATCH = 10, 11, 12


def build(
    trace: Trace,
    arrivals: Arrivals,
    *,
    qps: float | None,
    cv: float,
    seed: int,
    repeat: int,
    num_requests: int,
    high_priority_fraction: float,
) -> Workload:
    """Draw `num_requests` requests (fewer if the trace is shorter), at `qps` requests/s and gap variation `cv`.

    `seed` changes lengths, arrivals and priorities. `repeat` > 0 keeps lengths, moves each arrival by some milliseconds
    and draws anew who is of high priority, unless the trace says who is. The result is a pure function of the
    arguments. ConfigError for a value out of range, TraceError for a file that cannot be read.
    """
    _check(seed=seed, repeat=repeat, num_requests=num_requests, high_priority_fraction=high_priority_fraction)
    streams = trace.streams(seed)
    lengths = trace.draw(num_requests, streams)
    count = len(lengths.prompt_tokens)
    arrival_s = arrivals.times(count, qps=qps, cv=cv, stamp_s=lengths.stamp_s, rng=streams.arrivals)
    if repeat:
        arrival_s = _jittered(arrival_s, seed, repeat)
    draws = lengths.class_draws if lengths.class_draws is not None else _class_draws(count, seed, repeat)
    high = draws < high_priority_fraction
    priority = np.where(high, int(Priority.HIGH), int(Priority.NORMAL)).astype(np.int64)
    return Workload(
        arrival_s=arrival_s,
        prompt_tokens=lengths.prompt_tokens,
        output_tokens=lengths.output_tokens,
        priority=priority,
        label=lengths.label,
        synthetic=lengths.synthetic,
        rows_in=lengths.rows_in,
        dropped=lengths.dropped,
        sha256=_sha256(arrival_s, lengths.prompt_tokens, lengths.output_tokens, priority),
    )


def dispatch_choices(seed: int, repeat: int) -> Callable[[], float]:
    """Return what a dispatcher that chooses at random draws from [0, 1): of the same seed, apart from the workload."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_DISPATCH, repeat))).random


def _check(*, seed: int, repeat: int, num_requests: int, high_priority_fraction: float) -> None:
    if seed < 0:
        raise ConfigError(f"seed must be 0 or larger, got {seed}.")
    if repeat < 0:
        raise ConfigError(f"repeat must be 0 or larger, got {repeat}.")
    if num_requests < 1:
        raise ConfigError(f"num_requests must be at least 1, got {num_requests}.")
    if not (math.isfinite(high_priority_fraction) and 0 <= high_priority_fraction <= 1):
        raise ConfigError(f"high_priority_fraction must lie between 0 and 1, got {high_priority_fraction}.")


def _jittered(arrival_s: FloatArray, seed: int, repeat: int) -> FloatArray:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_JITTER, repeat)))
    moved = arrival_s + rng.normal(0.0, REPEAT_JITTER_S, len(arrival_s))
    # Times are sorted and lengths stay: the client still sends request k as its k-th.
    return np.sort(np.maximum(moved, 0.0))


def _class_draws(count: int, seed: int, repeat: int) -> FloatArray:
    spawn_key = (_PRIORITY, repeat) if repeat else (_PRIORITY,)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn_key)).random(count)


def _sha256(*columns: FloatArray | IntArray) -> str:
    """Hash of all columns: two runs with the same value were sent the same requests at the same times."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
