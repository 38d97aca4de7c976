"""Fits of tables whose coefficients are known, or that no fit can be made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llumnix.engines.sim.cost import PS_PER_S, CostModel, MixedCost, StepCost
from llumnix.engines.sim.fit import fit_steps
from llumnix.errors import ConfigError
from llumnix.profile import PROFILE, Region, in_region, pairs

TRUE = StepCost(
    dense_tokens=[1, 16, 32, 64, 128, 256, 512],
    dense_ms=[8.0, 8.2, 8.4, 9.0, 11.0, 20.0, 41.0],
    decode_per_request_ms=0.02,
    decode_per_token_ms=2e-4,
    prefill_per_request_ms=0.02,
    prefill_per_token2_ms=1e-6,
    prefill_per_context_ms=5e-4,
    mixed=MixedCost(
        base_ms=0.6,
        decode_per_request_ms=0.05,
        decode_per_token_ms=3e-4,
        prefill_per_token2_ms=2e-6,
        prefill_per_context_ms=7e-4,
    ),
)


def step(model: CostModel, chunk: int, context: int, decodes: int, decode_context: int) -> tuple[float, ...]:
    """Return a row of PROFILE: a chunk behind `context` tokens, and decodes of so much context each."""
    held, squares = decodes * decode_context, (context + chunk) ** 2 - context**2
    if not chunk:
        ps = model.decode_ps(decodes, held)
    elif not decodes:
        ps = model.prefill_ps(1, chunk, squares, context)
    else:
        ps = model.mixed_ps(decodes, held, 1, chunk, squares, context)
    return (int(chunk > 0), chunk, context, pairs(chunk, context), decodes, held, ps / PS_PER_S)


def table(cost: StepCost, noise: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a grid of steps of the three regions, their times as `cost` says, or some way off."""
    model, rows = CostModel(cost, 1), []
    for chunk in (0, 8, 20, 50, 100, 200, 400, 700):
        for context in (0, 100, 1000) if chunk else (0,):
            for decodes in (0, 1, 4, 12, 24, 50, 100, 200):
                for decode_context in (16, 300, 2000) if decodes else (0,):
                    if chunk or decodes:
                        rows.append(step(model, chunk, context, decodes, decode_context))
    columns = dict(zip(PROFILE.names, map(np.array, zip(*rows, strict=True)), strict=True))
    columns["step_s"] = columns["step_s"] * np.random.default_rng(seed).uniform(1 - noise, 1 + noise, len(rows))
    return columns


def test_the_coefficients_of_exact_steps_are_found() -> None:
    found = fit_steps(table(TRUE))
    np.testing.assert_allclose(found.cost.dense_ms, TRUE.dense_ms, rtol=1e-3)
    assert found.cost.dense_tokens == TRUE.dense_tokens
    for name in ("decode_per_request_ms", "decode_per_token_ms", "prefill_per_token2_ms", "prefill_per_context_ms"):
        assert getattr(found.cost, name) == pytest.approx(getattr(TRUE, name), rel=2e-3), name
        assert getattr(found.cost.mixed, name) == pytest.approx(getattr(TRUE.mixed, name), rel=2e-3), name
    assert found.cost.mixed is not None
    assert found.cost.mixed.base_ms == pytest.approx(0.6, rel=1e-2)
    assert [e.region for e in found.errors] == list(Region)
    assert all(e.worst < 1e-3 and e.held_out < 1e-3 for e in found.errors)
    np.testing.assert_allclose(found.fitted_s, table(TRUE)["step_s"], rtol=1e-3)


@pytest.mark.parametrize("floor_ms", [12.0, 20.0, 40.0, 80.0])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_floor_under_steps_with_prompts_is_found_and_hides_nothing_of_decodes(floor_ms: float, noise: float) -> None:
    """An engine whose decode steps are CUDA graphs, and whose prompts run no faster than they are launched."""
    steps = table(replace(TRUE, prefill_floor_ms=floor_ms), noise)
    found = fit_steps(steps)
    assert found.cost.prefill_floor_ms == pytest.approx(floor_ms, rel=0.03)
    assert all(e.median < 0.01 + 0.6 * noise for e in found.errors)
    model, true = (CostModel(cost, 1) for cost in (found.cost, TRUE))
    for batch in (1, 4, 24, 100, 200):
        assert model.decode_ps(batch, 300 * batch) == pytest.approx(true.decode_ps(batch, 300 * batch), rel=0.05)
    without = replace(found.cost, prefill_floor_ms=0.0)
    assert CostModel(without, 1).prefill_ps(1, 20, 400) < model.prefill_ps(1, 20, 400)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
def test_where_there_is_no_floor_none_is_found(noise: float) -> None:
    assert fit_steps(table(TRUE, noise)).cost.prefill_floor_ms == 0


def test_the_errors_are_those_of_the_times_that_the_cost_model_gives() -> None:
    steps = table(TRUE, noise=0.1)
    found = fit_steps(steps)
    model = CostModel(found.cost, 1)
    rows = in_region(Region.decode, steps["prefill_requests"], steps["decode_requests"])
    error = np.array(
        [
            model.decode_ps(int(n), int(held)) / PS_PER_S / s - 1
            for n, held, s in zip(
                steps["decode_requests"][rows], steps["decode_context_tokens"][rows], steps["step_s"][rows], strict=True
            )
        ]
    )
    decode = next(e for e in found.errors if e.region is Region.decode)
    assert decode.steps == rows.sum() == len(error)
    assert decode.mean == pytest.approx(error.mean(), abs=1e-4)
    assert decode.p90 == pytest.approx(np.percentile(np.abs(error), 90), abs=1e-4)
    assert decode.worst == pytest.approx(np.abs(error).max(), abs=1e-4)
    assert 0.02 < decode.median < 0.08, "of noise that is even up to 10 %"


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from([0.05, 0.3]))
def test_whatever_the_noise_no_step_gets_shorter_as_its_work_grows(seed: int, noise: float) -> None:
    model = CostModel(fit_steps(table(TRUE, noise, seed)).cost, 1)
    batches = [model.decode_ps(n, 5000) for n in (1, 2, 16, 17, 100, 256, 5000)]
    contexts = [model.decode_ps(32, n) for n in (32, 1000, 10**6)]
    prompts = [model.prefill_ps(1, n, n * n) for n in (1, 16, 100, 2048, 10**5)]
    mixed = [model.mixed_ps(n, 100 * n, 1, 50, 2500, 0) for n in (1, 5, 40, 300)]
    for times in (batches, contexts, prompts, mixed):
        assert times == sorted(times)
        assert times[0] > 0


def test_a_table_without_mixed_steps_leaves_them_to_the_sum_of_the_parts() -> None:
    steps = table(TRUE)
    alone = (steps["prefill_requests"] == 0) | (steps["decode_requests"] == 0)
    found = fit_steps({name: column[alone] for name, column in steps.items()})
    assert found.cost.mixed is None
    assert [e.region for e in found.errors] == [Region.decode, Region.prefill]


def test_steps_that_are_few_and_small_are_enough() -> None:
    """An engine on a CPU: batches of up to 8, prompts of up to 12."""
    model = CostModel(replace(TRUE, mixed=None), 1)
    rows = [step(model, 0, 0, n, c) for n in (1, 4, 8) for c in (10, 50, 90)]
    rows += [step(model, n, 0, 0, 0) for n in (2, 4, 6, 8, 12)]
    found = fit_steps(dict(zip(PROFILE.names, map(np.array, zip(*rows, strict=True)), strict=True)))
    assert all(e.worst < 0.01 for e in found.errors)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda t: t["decode_requests"] == 0, "has 0 decode-only steps, and a fit needs at least 8"),
        (lambda t: t["prefill_requests"] == 0, "has 0 prefill-only steps"),
    ],
)
def test_a_table_that_tells_too_little_is_refused(keep: object, message: str) -> None:
    steps = table(TRUE)
    rows = keep(steps)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=message):
        fit_steps({name: column[rows] for name, column in steps.items()})


def test_sizes_that_do_not_vary_are_refused() -> None:
    model = CostModel(TRUE, 1)
    rows = [step(model, 0, 0, 4, c) for c in range(10, 90, 5)] + [step(model, n, 0, 0, 0) for n in range(1, 9)]
    with pytest.raises(ConfigError, match="less than three values of decode_requests"):
        fit_steps(dict(zip(PROFILE.names, map(np.array, zip(*rows, strict=True)), strict=True)))
