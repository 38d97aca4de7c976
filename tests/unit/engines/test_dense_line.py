"""Lines through measured times of steps: what they hit, what they do between sizes, and that they never fall."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.engines.sim.cost import PS_PER_S, CostModel, StepCost
from llumnix.engines.sim.dense_line import TOLERANCE, DenseLine

SIZES = st.lists(st.integers(1, 3000), min_size=2, max_size=30, unique=True).map(sorted)


@given(sizes=SIZES, data=st.data())
def test_measured_times_that_never_fall_are_met_and_nothing_falls_between_or_beyond(
    sizes: list[int], data: st.DataObject
) -> None:
    rises = data.draw(st.lists(st.floats(0, 5), min_size=len(sizes), max_size=len(sizes)))
    tokens, time_s = np.array(sizes, dtype=float), 0.01 + np.cumsum(rises)
    line = DenseLine.through(tokens, time_s)
    np.testing.assert_allclose(line.at(tokens), time_s, rtol=1.1 * TOLERANCE)
    everywhere = line.at(np.arange(1, 7000))
    assert (np.diff(everywhere) >= -1e-12).all()
    assert (np.diff(line.tokens) > 0).all()


def test_a_token_more_than_a_tile_takes_the_next_tile() -> None:
    tokens = np.array([1, 128, 192, 256, 320, 512.0])
    line = DenseLine.through(tokens, np.array([1, 1, 1, 1, 2, 4.0]))
    assert line.at(np.array([256, 257, 300, 320])).tolist() == [1, 2, 2, 2]
    assert line.at(np.array([416.0])) == pytest.approx(3), "sizes 192 apart are joined by a line"


def test_beyond_the_largest_size_it_goes_on_as_from_its_half_to_its_end() -> None:
    tokens = np.arange(1, 1025.0)
    tiles = np.ceil(tokens / 64)
    assert DenseLine.through(tokens, tiles).at(np.array([2048, 3072])) == pytest.approx([32, 48], rel=0.04)


def test_noise_is_evened_out_and_not_taken_for_rises() -> None:
    tokens = np.arange(1, 513.0)
    noisy = 10 * np.exp(0.05 * np.random.default_rng(0).standard_normal(512))
    line = DenseLine.through(tokens, noisy)
    np.testing.assert_allclose(line.at(tokens[50:450]), 10, rtol=0.03)


def test_the_cost_model_goes_along_the_same_line() -> None:
    tokens = np.array([1, 16, 64, 128, 256, 272, 512, 1024])
    line = DenseLine.through(tokens, np.array([16, 16, 17, 18, 24, 34, 46, 90]) / 1000)
    spec = StepCost(dense_tokens=line.tokens.astype(int).tolist(), dense_ms=(1000 * line.time_s).tolist())
    model = CostModel(spec, 1)
    sizes = np.array([1, 5, 63, 256, 257, 400, 1024, 3000])
    found = [model.prefill_ps(1, int(n), 0) / PS_PER_S for n in sizes]
    np.testing.assert_allclose(found, line.at(sizes), rtol=1e-6)
