"""When requests are sent: arrival processes. Each class is its own schema under conf/arrivals. No lengths here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llumnix.errors import ConfigError
from llumnix.request import FloatArray
from llumnix.traces.base import Rng


@dataclass(kw_only=True, slots=True)
class Arrivals:
    """An arrival process; the first request is sent at 0 s and gaps follow, as in the artifact's open-loop client."""

    name: str

    def times(self, count: int, *, qps: float | None, cv: float, stamp_s: FloatArray | None, rng: Rng) -> FloatArray:
        """`count` times in s, sorted, the first one 0; `stamp_s` holds the trace's own times where it has them."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class Poisson(Arrivals):
    """Exponential gaps of mean 1/qps."""

    name: str = "poisson"

    def times(self, count: int, *, qps: float | None, cv: float, stamp_s: FloatArray | None, rng: Rng) -> FloatArray:
        """See Arrivals.times."""
        return _after_gaps(rng.exponential(1 / checked_qps(qps), count))


@dataclass(kw_only=True, slots=True)
class Gamma(Arrivals):
    """Gamma gaps of mean 1/qps and coefficient of variation cv: shape 1/cv^2, scale cv^2/qps."""

    name: str = "gamma"

    def times(self, count: int, *, qps: float | None, cv: float, stamp_s: FloatArray | None, rng: Rng) -> FloatArray:
        """See Arrivals.times."""
        rate = checked_qps(qps)
        if not (math.isfinite(cv) and cv > 0):
            raise ConfigError(f"cv must be a positive number with arrivals=gamma, got {cv}: type for example cv=2.")
        return _after_gaps(rng.gamma(1 / cv**2, cv**2 / rate, count))


@dataclass(kw_only=True, slots=True)
class Uniform(Arrivals):
    """Gaps of exactly 1/qps."""

    name: str = "uniform"

    def times(self, count: int, *, qps: float | None, cv: float, stamp_s: FloatArray | None, rng: Rng) -> FloatArray:
        """See Arrivals.times."""
        times: FloatArray = np.arange(count) / checked_qps(qps)
        return times


@dataclass(kw_only=True, slots=True)
class Burst(Arrivals):
    """All requests at 0 s; the rate plays no part."""

    name: str = "burst"

    def times(self, count: int, *, qps: float | None, cv: float, stamp_s: FloatArray | None, rng: Rng) -> FloatArray:
        """See Arrivals.times."""
        return np.zeros(count)


@dataclass(kw_only=True, slots=True)
class Recorded(Arrivals):
    """The trace's own times.

    They run `rate_scale` times as fast as recorded (1 = as recorded). With rate_scale null they are stretched so that
    the mean rate is qps, or left alone where qps is null too.
    """

    name: str = "recorded"
    rate_scale: float | None = None

    def __post_init__(self) -> None:
        if self.rate_scale is not None and not (math.isfinite(self.rate_scale) and self.rate_scale > 0):
            raise ConfigError(f"arrivals.rate_scale must be a positive number or null, got {self.rate_scale}.")

    def times(self, count: int, *, qps: float | None, cv: float, stamp_s: FloatArray | None, rng: Rng) -> FloatArray:
        """See Arrivals.times; ConfigError where the trace has no times."""
        if stamp_s is None:
            raise ConfigError(
                "arrivals=recorded needs a trace with time stamps, and this one has none: type arrivals=poisson."
            )
        if self.rate_scale is not None:
            return stamp_s / self.rate_scale
        if qps is None:
            return stamp_s
        gaps, span_s = count - 1, float(stamp_s[-1])
        if gaps and not span_s:
            raise ConfigError(
                "arrivals=recorded cannot be stretched to qps, since all requests of the trace have the same time: "
                "type arrivals.rate_scale=1."
            )
        return stamp_s * (gaps / checked_qps(qps) / span_s) if gaps else stamp_s


def checked_qps(qps: float | None) -> float:
    """The rate in requests/s; ConfigError if it is not a positive, finite number."""
    if qps is None or not (math.isfinite(qps) and qps > 0):
        raise ConfigError(f"qps must be a positive number of requests per second, got {qps}: type for example qps=7.5.")
    return qps


def _after_gaps(gap_s: FloatArray) -> FloatArray:
    # The client sleeps after each send, so the last gap is drawn but delays nobody.
    return np.concatenate(([0.0], np.cumsum(gap_s[:-1])))
