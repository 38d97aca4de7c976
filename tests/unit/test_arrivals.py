"""Arrival processes: rate, variation, order, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llumnix.arrivals import Arrivals, Burst, Gamma, Poisson, Recorded, Uniform
from llumnix.errors import ConfigError
from llumnix.request import FloatArray


def times(
    process: Arrivals,
    count: int = 20_000,
    qps: float | None = 5.0,
    cv: float = 1.0,
    stamp_s: FloatArray | None = None,
    seed: int = 0,
) -> FloatArray:
    rng = np.random.default_rng(seed)
    return process.times(count, qps=qps, cv=cv, stamp_s=stamp_s, rng=rng)


@pytest.mark.parametrize(("process", "cv"), [(Poisson(), 1.0), (Gamma(), 0.5), (Gamma(), 1.0), (Gamma(), 4.0)])
def test_gaps_have_the_mean_and_the_variation_asked_for(process: Arrivals, cv: float) -> None:
    gaps = np.diff(times(process, cv=cv))
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.04 * max(cv, 1))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_poisson_ignores_cv_and_gamma_does_not() -> None:
    assert np.array_equal(times(Poisson(), cv=1), times(Poisson(), cv=8))
    assert not np.array_equal(times(Gamma(), cv=1), times(Gamma(), cv=8))


def test_uniform_and_burst() -> None:
    assert times(Uniform(), count=4).tolist() == pytest.approx([0, 0.2, 0.4, 0.6])
    assert times(Burst(), count=3, qps=None).tolist() == [0, 0, 0]


@settings(max_examples=60, deadline=None)
@given(
    process=st.sampled_from([Poisson(), Gamma(), Uniform(), Burst()]),
    count=st.integers(1, 300),
    qps=st.floats(0.01, 1000),
    cv=st.floats(0.1, 10),
    seed=st.integers(0, 1000),
)
def test_times_start_at_zero_and_never_decrease(
    process: Arrivals, count: int, qps: float, cv: float, seed: int
) -> None:
    drawn = times(process, count, qps, cv, seed=seed)
    assert len(drawn) == count
    assert drawn[0] == 0
    assert (np.diff(drawn) >= 0).all()


def test_recorded_times_are_replayed_scaled_or_stretched() -> None:
    stamps = np.array([0.0, 1.0, 4.0])
    assert times(Recorded(rate_scale=1), 3, stamp_s=stamps).tolist() == [0, 1, 4]
    assert times(Recorded(rate_scale=2), 3, stamp_s=stamps).tolist() == [0, 0.5, 2]
    assert times(Recorded(), 3, qps=None, stamp_s=stamps).tolist() == [0, 1, 4]
    # Two gaps in 0.4 s are 5 requests/s.
    assert times(Recorded(), 3, qps=5, stamp_s=stamps).tolist() == pytest.approx([0, 0.1, 0.4])
    assert times(Recorded(), 1, qps=5, stamp_s=np.zeros(1)).tolist() == [0]


def test_recorded_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match=r"has none: type arrivals=poisson"):
        times(Recorded(), 3)
    with pytest.raises(ConfigError, match="the same time"):
        times(Recorded(), 3, stamp_s=np.zeros(3))
    with pytest.raises(ConfigError, match="rate_scale must be a positive number or null, got 0"):
        Recorded(rate_scale=0)


@pytest.mark.parametrize("qps", [0.0, -1.0, float("nan"), float("inf"), None])
@pytest.mark.parametrize("process", [Poisson(), Gamma(), Uniform()])
def test_a_rate_that_is_none_is_refused(process: Arrivals, qps: float | None) -> None:
    with pytest.raises(ConfigError, match=r"qps must be a positive number .* got"):
        times(process, 3, qps)


@pytest.mark.parametrize("cv", [0.0, -1.0, float("nan"), float("inf")])
def test_gamma_refuses_a_variation_out_of_range(cv: float) -> None:
    with pytest.raises(ConfigError, match="cv must be a positive number with arrivals=gamma, got"):
        times(Gamma(), 3, cv=cv)
