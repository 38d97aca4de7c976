"""Statistics of workloads, against closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from llumnix.traces.statistics import burstiness, counts_per_window, dispersion, length_statistics, rank_correlation


def test_length_statistics_interpolate_linearly() -> None:
    measured = length_statistics(np.arange(101))
    assert (measured.mean, measured.p50, measured.p80, measured.p95, measured.p99, measured.max) == (
        50, 50, 80, 95, 99, 100,
    )  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=3, max_size=60))
def test_rank_correlation_is_spearmans_with_ties(pairs: list[tuple[int, int]]) -> None:
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    ours = rank_correlation(first, second)
    if len(set(first.tolist())) == 1 or len(set(second.tolist())) == 1:
        assert ours is None
    else:
        assert ours == pytest.approx(spearmanr(first, second).statistic, abs=1e-9)


def test_evenly_spaced_arrivals_are_not_bursty() -> None:
    measured = burstiness(np.arange(1200) * 0.1)
    assert measured.rate_per_s == pytest.approx(10)
    assert measured.gap_cv == pytest.approx(0, abs=1e-6)
    assert measured.zero_gap_fraction == 0
    assert measured.dispersion[10.0] == pytest.approx(0, abs=1e-3)
    assert measured.dispersion[60.0] is None


def test_poisson_arrivals_have_dispersion_one_and_batches_more() -> None:
    rng = np.random.default_rng(0)
    poisson = np.cumsum(rng.exponential(0.1, 50_000))
    assert dispersion(poisson, 1.0) == pytest.approx(1, abs=0.05)
    batches = np.repeat(np.cumsum(rng.exponential(1.0, 5000)), 10)
    assert dispersion(batches, 10.0) == pytest.approx(10, rel=0.2)


def test_counts_leave_out_the_last_partial_window() -> None:
    assert counts_per_window(np.array([5.0, 5.5, 6.2, 8.1]), 1.0).tolist() == [2, 1, 0]


def test_one_request_has_no_rate() -> None:
    measured = burstiness(np.zeros(1))
    assert (measured.rate_per_s, measured.gap_cv, measured.zero_gap_fraction) == (None, None, None)
    assert set(measured.dispersion.values()) == {None}
    together = burstiness(np.zeros(3))
    assert (together.rate_per_s, together.zero_gap_fraction) == (None, 1.0)
