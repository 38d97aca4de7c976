"""What a workload looks like in numbers: length percentiles as in Table 1, in-out dependence, burstiness."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llumnix.request import FloatArray, IntArray

WINDOWS_S = (1.0, 10.0, 60.0)


@dataclass(frozen=True, slots=True)
class LengthStatistics:
    """Lengths in tokens; percentiles by linear interpolation."""

    mean: float
    p50: float
    p80: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Burstiness:
    """How unevenly requests arrive; None where there are too few requests to tell.

    `dispersion` maps a window length in s to variance / mean of the counts per window: 1 for Poisson, larger for
    bursts. It tells bursts from a coarse clock, which raises `gap_cv` as well.
    """

    span_s: float
    rate_per_s: float | None
    gap_cv: float | None
    zero_gap_fraction: float | None
    dispersion: dict[float, float | None]


def length_statistics(tokens: IntArray) -> LengthStatistics:
    """Statistics of a non-empty column."""
    p50, p80, p95, p99 = map(float, np.percentile(tokens, [50, 80, 95, 99]))
    return LengthStatistics(float(tokens.mean()), p50, p80, p95, p99, float(tokens.max()))


def rank_correlation(first: IntArray, second: IntArray) -> float | None:
    """Spearman's rho, ties at their mean rank; None if a column is constant."""
    ranks = [_mean_ranks(column) for column in (first, second)]
    spreads = [float(column.std()) for column in ranks]
    if min(spreads, default=0.0) == 0.0:
        return None
    products = (ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())
    return float(products.mean()) / (spreads[0] * spreads[1])


def burstiness(arrival_s: FloatArray) -> Burstiness:
    """Burstiness of sorted arrival times in s (at least one)."""
    gaps = np.diff(arrival_s)
    span_s = float(arrival_s[-1] - arrival_s[0])
    moving = span_s > 0
    return Burstiness(
        span_s=span_s,
        rate_per_s=len(gaps) / span_s if moving else None,
        gap_cv=float(gaps.std() / gaps.mean()) if moving else None,
        zero_gap_fraction=float((gaps == 0).mean()) if len(gaps) else None,
        dispersion={window_s: dispersion(arrival_s, window_s) for window_s in WINDOWS_S},
    )


def dispersion(arrival_s: FloatArray, window_s: float) -> float | None:
    """Variance / mean of the number of arrivals per window; None with fewer than two whole windows."""
    counts = counts_per_window(arrival_s, window_s)
    return float(counts.var() / counts.mean()) if len(counts) >= 2 else None


def counts_per_window(arrival_s: FloatArray, window_s: float) -> IntArray:
    """Arrivals in each whole window since the first arrival; the last, partial window is left out."""
    since_first = arrival_s - arrival_s[0]
    windows = math.floor(since_first[-1] / window_s)
    window = (since_first / window_s).astype(np.int64)
    return np.bincount(window[window < windows], minlength=windows)


def _mean_ranks(values: IntArray) -> FloatArray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: FloatArray = (last - (counts - 1) / 2)[place]
    return ranks
