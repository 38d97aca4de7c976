"""What a step costs: closed-form times that can be summed over thousands of decode steps at once.

Virtual time is an integer number of picoseconds. Integers make the sum of k growing steps exact, so that skipping k
steps gives the very same clock as walking through them; a picosecond is fine enough for a cost per KV token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from llumnix.errors import ConfigError

PS_PER_S = 10**12
PS_PER_MS = 10**9


@dataclass(kw_only=True, slots=True)
class StepCost:
    """Measured times of one model on one GPU, in ms, and the KV memory that is left for requests.

    decode step:  step_gap + decode_base + decode_per_request * batch + decode_per_token * total tokens of the batch
    prefill step: step_gap + max(prefill_floor, prefill_base + prefill_per_token * L + prefill_per_token2 * L^2)
                  + prefill_per_request * prompts (L summed over the prompts of the step, L^2 summed per prompt);
                  the floor is the time to read the weights once, which short prompts cannot hide
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
    copy_latency_ms: float = 0.0
    last_copy_latency_ms: float = 0.0
    copy_bandwidth_gb_s: float = 1.0
    migration_step_ms: float = 0.0
    control_ms: float = 1.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not math.isfinite(value):
                raise ConfigError(f"gpu.costs.*.{f.name} must be a finite number, got {value}.")
            if f.name in _MUST_TAKE_TIME and value <= 0:
                raise ConfigError(f"gpu.costs.*.{f.name} must be positive, got {value}.")
            if value < 0 and f.name != "prefill_base_ms":  # the intercept of a fitted line
                raise ConfigError(f"gpu.costs.*.{f.name} must not be negative, got {value}.")


_MUST_TAKE_TIME = ("decode_base_ms", "copy_bandwidth_gb_s", "control_ms")


class CostModel:
    """StepCost in integer picoseconds, for one size of KV entry."""

    __slots__ = (
        "base_ps",
        "control_ps",
        "copy_ps",
        "copy_token_ps",
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
        self.migration_step_ps = _ps(spec.migration_step_ms)
        self.control_ps = _ps(spec.control_ms)
        self.copy_ps = _ps(spec.copy_latency_ms)
        self.last_copy_ps = _ps(spec.last_copy_latency_ms)
        self.copy_token_ps = round(kv_bytes_per_token / spec.copy_bandwidth_gb_s * 1000)  # bytes / (GB/s) = ns

    def decode_ps(self, batch: int, tokens: int) -> int:
        """Duration of one decode step of `batch` requests that hold `tokens` tokens in all."""
        return self.base_ps + self.request_ps * batch + self.token_ps * tokens

    def prefill_ps(self, requests: int, tokens: int, squares: int) -> int:
        """Duration of a prefill-only step over `requests` prompts with `tokens` = sum L and `squares` = sum L^2."""
        spec = self.spec
        compute_ms = spec.prefill_base_ms + spec.prefill_per_token_ms * tokens + spec.prefill_per_token2_ms * squares
        return self.gap_ps + _ps(max(spec.prefill_floor_ms, compute_ms) + spec.prefill_per_request_ms * requests)

    def copy_time_ps(self, tokens: int, *, last: bool) -> int:
        """Duration of copying the KV cache of `tokens` tokens to another instance."""
        return (self.last_copy_ps if last else self.copy_ps) + self.copy_token_ps * tokens


def _ps(ms: float) -> int:
    return round(ms * PS_PER_MS)
