"""Step times: the formulas of StepCost's docstring in integer picoseconds, and what is not a cost."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.engines.sim.cost import PS_PER_MS, PS_PER_S, CostModel, MixedCost, StepCost
from llumnix.errors import ConfigError

COST = StepCost(
    kv_blocks=783,
    step_gap_ms=4.0,
    decode_base_ms=31.0,
    decode_per_request_ms=0.55,
    decode_per_token_ms=0.00144,
    prefill_floor_ms=20.0,
    prefill_base_ms=-0.4,
    prefill_per_token_ms=0.2112,
    prefill_per_token2_ms=3.98e-6,
    prefill_per_request_ms=1.5,
    copy_latency_ms=28.0,
    last_copy_latency_ms=14.0,
    copy_bandwidth_gb_s=2.56,
    migration_step_ms=2.0,
    control_ms=1.0,
)
KV_BYTES = 524_288
MODEL = CostModel(COST, KV_BYTES)


def test_units() -> None:
    assert PS_PER_S == 1000 * PS_PER_MS == 10**12


def test_a_decode_step_is_linear_in_batch_and_tokens() -> None:
    assert MODEL.decode_ps(1, 1) == round((4 + 31 + 0.55 + 0.00144) * PS_PER_MS)
    assert MODEL.decode_ps(10, 5000) == round((4 + 31 + 5.5 + 7.2) * PS_PER_MS)


@given(st.integers(1, 256), st.integers(1, 100_000), st.integers(1, 3000))
def test_many_decode_steps_add_up_without_any_rounding(batch: int, tokens: int, steps: int) -> None:
    walked = sum(MODEL.decode_ps(batch, tokens + batch * k) for k in range(steps))
    first = MODEL.decode_ps(batch, tokens)
    growth = MODEL.decode_ps(batch, tokens + batch) - first
    assert walked == steps * first + growth * (steps * (steps - 1) // 2)
    exact = steps * (35 + Fraction("0.55") * batch) + Fraction("0.00144") * (
        steps * tokens + batch * steps * (steps - 1) // 2
    )
    assert walked == exact * PS_PER_MS


def test_a_prefill_step_sums_lengths_and_squares_and_has_a_floor() -> None:
    lengths = [1000, 200]
    squares = sum(n * n for n in lengths)
    compute_ms = -0.4 + 0.2112 * 1200 + 3.98e-6 * squares
    assert MODEL.prefill_ps(2, 1200, squares) == round(4 * PS_PER_MS) + round((compute_ms + 2 * 1.5) * PS_PER_MS)
    assert MODEL.prefill_ps(1, 10, 100) == round((4 + 20 + 1.5) * PS_PER_MS)


def test_a_copy_takes_latency_and_bandwidth_and_the_last_one_its_own_latency() -> None:
    per_token_ms = KV_BYTES / 2.56e9 * 1000  # 0.2048
    for last, latency_ms in ((False, 28), (True, 14)):
        assert MODEL.copy_time_ps(0, last=last) == latency_ms * PS_PER_MS
        assert MODEL.copy_time_ps(4000, last=last) == pytest.approx((latency_ms + 4000 * per_token_ms) * PS_PER_MS)


NO_TIMES = {"kv_blocks", "dense_tokens", "dense_ms", "mixed"}


@pytest.mark.parametrize("name", [f.name for f in fields(StepCost) if f.name not in NO_TIMES])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_cost_that_is_not_a_number_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must be a finite number, got {value}"):
        StepCost(**({"decode_base_ms": 31.0} | {name: value}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"decode_base_ms": 0.0},
        {"decode_base_ms": -1.0},
        {"copy_bandwidth_gb_s": 0.0},
        {"copy_bandwidth_gb_s": -2.0},
        {"control_ms": 0.0},
    ],
)
def test_what_must_take_time_has_to_be_positive(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        StepCost(**({"decode_base_ms": 31.0} | wrong))


MAY_BE_ANYTHING = {"prefill_base_ms"}  # an intercept of a fit
CHECKED_ABOVE = {*NO_TIMES, "decode_base_ms", "copy_bandwidth_gb_s", "control_ms"}


@pytest.mark.parametrize("name", sorted({f.name for f in fields(StepCost)} - MAY_BE_ANYTHING - CHECKED_ABOVE))
def test_a_negative_cost_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        StepCost(**({"decode_base_ms": 31.0} | {name: -1e-3}))


# --- what profiles add

DENSE = StepCost(
    dense_tokens=[10, 20, 40], dense_ms=[5.0, 6.0, 10.0], decode_per_request_ms=0.1, prefill_per_context_ms=0.5
)


@pytest.mark.parametrize(("tokens", "dense_ms"), [(1, 5.0), (10, 5.0), (15, 5.5), (20, 6.0), (30, 8.0), (60, 14.0)])
def test_the_dense_line_goes_through_its_points_and_on_beyond_the_last(tokens: int, dense_ms: float) -> None:
    model = CostModel(DENSE, KV_BYTES)
    assert model.decode_ps(tokens, 12345) == round((dense_ms + 0.1 * tokens) * PS_PER_MS)
    assert model.prefill_ps(1, tokens, 0, 8) == round((dense_ms + 4.0) * PS_PER_MS)


def test_one_point_is_a_constant() -> None:
    model = CostModel(StepCost(dense_tokens=[7], dense_ms=[3.0]), KV_BYTES)
    assert {model.decode_ps(n, 1) for n in (1, 7, 1000)} == {3 * PS_PER_MS}


def test_a_mixed_step_has_coefficients_of_its_own() -> None:
    mixed = MixedCost(
        base_ms=1.0,
        decode_per_request_ms=0.2,
        decode_per_token_ms=0.01,
        prefill_per_token2_ms=0.001,
        prefill_per_context_ms=0.03,
    )
    cost = replace(DENSE, step_gap_ms=2.0, prefill_per_token_ms=0.4, prefill_per_request_ms=3.0, mixed=mixed)
    # 25 tokens: dense 7 ms
    expected_ms = 2 + 7 + 1 + 0.2 * 5 + 0.01 * 600 + 0.4 * 20 + 0.001 * 900 + 0.03 * 50 + 3 * 2
    assert CostModel(cost, KV_BYTES).mixed_ps(5, 600, 2, 20, 900, 50) == round(expected_ms * PS_PER_MS)


@pytest.mark.parametrize("cost", [COST, replace(DENSE, prefill_per_token_ms=0.3)])
def test_without_them_it_is_a_prefill_step_and_what_the_decodes_add(cost: StepCost) -> None:
    model = CostModel(cost, KV_BYTES)
    alone = model.prefill_ps(1, 20, 400, 0)
    decodes_ms = cost.decode_per_request_ms * 8 + cost.decode_per_token_ms * 4000
    more_ms = 2.0 * 0.8 if cost.dense_ms else 0  # 28 tokens instead of 20
    assert model.mixed_ps(8, 4000, 1, 20, 400, 0) == alone + round((decodes_ms + more_ms) * PS_PER_MS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dense_tokens": [1, 2]}, "2 and 1 values"),
        ({"dense_tokens": [2, 1], "dense_ms": [1.0, 2.0]}, "must rise"),
        ({"dense_tokens": [0, 1], "dense_ms": [1.0, 2.0]}, "must rise"),
        ({"dense_tokens": [1, 2], "dense_ms": [2.0, 1.0]}, "must not fall"),
        ({"dense_tokens": [1], "dense_ms": [0.0]}, "dense_ms must be positive"),
        ({"dense_tokens": [1], "dense_ms": [math.nan]}, "dense_ms must be a finite number"),
    ],
)
def test_a_dense_line_that_cannot_be_is_refused(wrong: dict[str, list[float]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StepCost(**({"dense_tokens": [1], "dense_ms": [1.0]} | wrong))


@pytest.mark.parametrize("name", [f.name for f in fields(MixedCost)])
def test_a_negative_cost_of_mixed_steps_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"mixed.{name} must not be negative"):
        MixedCost(**{name: -1.0})
