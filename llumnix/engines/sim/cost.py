"""What a step costs: closed-form times that can be summed over thousands of decode steps at once.

Virtual time is an integer number of picoseconds. Integers make the sum of k growing steps exact, so that skipping k
steps gives the very same clock as walking through them; a picosecond is fine enough for a cost per KV token.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field, fields

from llumnix.errors import ConfigError

PS_PER_S = 10**12
PS_PER_MS = 10**9


@dataclass(kw_only=True, slots=True)
class MixedCost:
    """What steps of decodes and prompts together cost beyond the `dense` time of their tokens, in ms (StepCost).

    Attention over both at once costs more than its two parts, so these coefficients are fitted on mixed steps alone.
    """

    base_ms: float = 0.0
    decode_per_request_ms: float = 0.0
    decode_per_token_ms: float = 0.0
    prefill_per_token2_ms: float = 0.0
    prefill_per_context_ms: float = 0.0

    def __post_init__(self) -> None:
        for f in fields(self):
            _check_time(f"mixed.{f.name}", getattr(self, f.name))


@dataclass(kw_only=True, slots=True)
class StepCost:
    """Measured times of one model on one GPU, in ms, and the KV memory that is left for requests.

    dense(n): time of a step that hangs on nothing but the n tokens it computes: a line through the points
    (dense_tokens, dense_ms), which goes on beyond the last as between the last two; 0 if there are none. GPUs read all
    weights for one token as for a hundred, and then compute in tiles, so that one line does not do.

    decode step:  step_gap + dense(batch) + decode_base + decode_per_request * batch
                  + decode_per_token * total tokens of the batch
    prefill step: step_gap + max(prefill_floor, dense(L) + prefill_base + prefill_per_token * L
                  + prefill_per_token2 * Q + prefill_per_context * K) + prefill_per_request * prompts
                  (L tokens computed and K tokens in KV before, summed over the prompts of the step; Q = L^2 summed per
                  prompt, or end^2 - start^2 of a chunk); the floor is the time to read the weights once, which short
                  prompts cannot hide
    mixed step:   like a prefill step of all its tokens, where `mixed` has the coefficients; without it, a prefill step
                  plus what its decodes add to a decode step
    copy of n tokens: copy_latency + n * KV bytes per token / copy_bandwidth; the last copy of a migration has its
    own, smaller latency because the request no longer decodes beside it. A migration slows each step of both sides
    by migration_step. control is the one-way time of a message between instances.
    """

    kv_blocks: int = 0
    step_gap_ms: float = 0.0
    decode_base_ms: float = 0.0
    decode_per_request_ms: float = 0.0
    decode_per_token_ms: float = 0.0
    prefill_floor_ms: float = 0.0
    prefill_base_ms: float = 0.0
    prefill_per_token_ms: float = 0.0
    prefill_per_token2_ms: float = 0.0
    prefill_per_request_ms: float = 0.0
    prefill_per_context_ms: float = 0.0
    dense_tokens: list[int] = field(default_factory=list)
    dense_ms: list[float] = field(default_factory=list)
    mixed: MixedCost | None = None
    copy_latency_ms: float = 0.0
    last_copy_latency_ms: float = 0.0
    copy_bandwidth_gb_s: float = 1.0
    migration_step_ms: float = 0.0
    control_ms: float = 1.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, int | float):
                continue
            if f.name == "prefill_base_ms":  # the intercept of a fitted line
                value = abs(value)
            takes_time = f.name in _MUST_TAKE_TIME or (f.name == "decode_base_ms" and not self.dense_ms)
            _check_time(f.name, value, positive=takes_time)
        self._check_dense()

    def _check_dense(self) -> None:
        if len(self.dense_tokens) != len(self.dense_ms):
            raise ConfigError(
                f"gpu.costs.*.dense_tokens and dense_ms are points of one line, but {len(self.dense_tokens)} and "
                f"{len(self.dense_ms)} values are given."
            )
        rising = sorted(set(self.dense_tokens)) == list(self.dense_tokens)
        if not rising or min(self.dense_tokens, default=1) < 1:
            raise ConfigError(f"gpu.costs.*.dense_tokens must rise from 1 or more, got {list(self.dense_tokens)}.")
        for ms in self.dense_ms:
            _check_time("dense_ms", ms, positive=True)
        if sorted(self.dense_ms) != list(self.dense_ms):
            raise ConfigError(f"gpu.costs.*.dense_ms must not fall with more tokens, got {list(self.dense_ms)}.")


_MUST_TAKE_TIME = ("copy_bandwidth_gb_s", "control_ms")


def _check_time(name: str, value: float, *, positive: bool = False) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"gpu.costs.*.{name} must be a finite number, got {value}.")
    if positive and value <= 0:
        raise ConfigError(f"gpu.costs.*.{name} must be positive, got {value}.")
    if value < 0:
        raise ConfigError(f"gpu.costs.*.{name} must not be negative, got {value}.")


class CostModel:
    """StepCost in integer picoseconds, for one size of KV entry."""

    __slots__ = (
        "base_ps",
        "control_ps",
        "copy_ps",
        "copy_token_ps",
        "dense_ps",
        "gap_ps",
        "last_copy_ps",
        "migration_step_ps",
        "request_ps",
        "spec",
        "token_ps",
    )

    def __init__(self, spec: StepCost, kv_bytes_per_token: int) -> None:
        self.spec = spec
        self.gap_ps = _ps(spec.step_gap_ms)
        self.base_ps = _ps(spec.step_gap_ms + spec.decode_base_ms)
        self.request_ps = _ps(spec.decode_per_request_ms)
        self.token_ps = _ps(spec.decode_per_token_ms)
        self.dense_ps: dict[int, int] | None = _Dense(spec) if spec.dense_ms else None
        self.migration_step_ps = _ps(spec.migration_step_ms)
        self.control_ps = _ps(spec.control_ms)
        self.copy_ps = _ps(spec.copy_latency_ms)
        self.last_copy_ps = _ps(spec.last_copy_latency_ms)
        self.copy_token_ps = round(kv_bytes_per_token / spec.copy_bandwidth_gb_s * 1000)  # bytes / (GB/s) = ns

    def decode_ps(self, batch: int, tokens: int) -> int:
        """Duration of one decode step of `batch` requests that hold `tokens` tokens in all."""
        ps = self.base_ps + self.request_ps * batch + self.token_ps * tokens
        return ps if self.dense_ps is None else ps + self.dense_ps[batch]

    def prefill_ps(self, requests: int, tokens: int, squares: int, context_tokens: int = 0) -> int:
        """Duration of a prefill-only step over `requests` prompts with `tokens` = L, `squares` = Q of StepCost.

        `context_tokens` = K, the tokens of these prompts that have been computed in earlier steps.
        """
        spec = self.spec
        compute_ms = (
            spec.prefill_base_ms
            + spec.prefill_per_token_ms * tokens
            + spec.prefill_per_token2_ms * squares
            + spec.prefill_per_context_ms * context_tokens
        )
        if self.dense_ps is not None:
            compute_ms += self.dense_ps[tokens] / PS_PER_MS
        return self.gap_ps + _ps(max(spec.prefill_floor_ms, compute_ms) + spec.prefill_per_request_ms * requests)

    def mixed_ps(
        self, decodes: int, decode_tokens: int, requests: int, tokens: int, squares: int, context_tokens: int
    ) -> int:
        """Duration of a step of `decodes` decodes that hold `decode_tokens` tokens, and of prompts as in prefill_ps."""
        spec, mixed = self.spec, self.spec.mixed
        if mixed is None:
            decode_ps = self.request_ps * decodes + self.token_ps * decode_tokens
            if self.dense_ps is not None:
                decode_ps += self.dense_ps[tokens + decodes] - self.dense_ps[tokens]
            return self.prefill_ps(requests, tokens, squares, context_tokens) + decode_ps
        compute_ms = (
            mixed.base_ms
            + mixed.decode_per_request_ms * decodes
            + mixed.decode_per_token_ms * decode_tokens
            + spec.prefill_per_token_ms * tokens
            + mixed.prefill_per_token2_ms * squares
            + mixed.prefill_per_context_ms * context_tokens
        )
        if self.dense_ps is not None:
            compute_ms += self.dense_ps[tokens + decodes] / PS_PER_MS
        return self.gap_ps + _ps(max(spec.prefill_floor_ms, compute_ms) + spec.prefill_per_request_ms * requests)

    def copy_time_ps(self, tokens: int, *, last: bool) -> int:
        """Duration of copying the KV cache of `tokens` tokens to another instance."""
        return (self.last_copy_ps if last else self.copy_ps) + self.copy_token_ps * tokens


def _ps(ms: float) -> int:
    return round(ms * PS_PER_MS)


class _Dense(dict[int, int]):
    """dense(n) of StepCost in ps by n, worked out when it is first asked for."""

    def __init__(self, spec: StepCost) -> None:
        super().__init__()
        self._tokens, self._ms = list(spec.dense_tokens), list(spec.dense_ms)

    def __missing__(self, tokens: int) -> int:
        knots, ms = self._tokens, self._ms
        piece = min(max(bisect_right(knots, tokens), 1), len(knots) - 1)
        if tokens <= knots[0] or len(knots) == 1:
            found = ms[0]
        else:
            slope = (ms[piece] - ms[piece - 1]) / (knots[piece] - knots[piece - 1])
            found = ms[piece - 1] + slope * (tokens - knots[piece - 1])
        self[tokens] = ps = _ps(found)
        return ps
