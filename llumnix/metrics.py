"""What the numbers mean: one function per metric, its formula in the docstring, on columns of requests.parquet.

A column is an array with one entry per request; a time that never came is NaN. Times and latencies are in seconds.
The names are the paper's (§6.1); docs/metrics.md sets them beside those of other tools. Nothing here reads or writes
files, and nothing here averages over runs: that is what repeats and seeds are for, and analysis/ does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llumnix.errors import ConfigError
from llumnix.request import Priority

FloatArray = npt.NDArray[np.float64]
Columns = Mapping[str, Any]

FINISHED = "finished"
PERCENTILES = (50, 80, 95, 99)


@dataclass(kw_only=True, slots=True)
class Slo:
    """Service level objective of a request: limits in seconds on its TTFT and its TPOT; None is no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            limit_s = getattr(self, name)
            if limit_s is not None and not 0 < limit_s < math.inf:
                raise ConfigError(f"slo.{name} must be a positive number of seconds, got {limit_s}.")

    @property
    def given(self) -> bool:
        """True if there is a limit."""
        return self.ttft_s is not None or self.tpot_s is not None


def request_latency(columns: Columns) -> FloatArray:
    """end_s - arrival_s: from the scheduled arrival to the last token."""
    return _floats(columns, "end_s") - _floats(columns, "arrival_s")


def prefill_latency(columns: Columns) -> FloatArray:
    """first_token_s - arrival_s: all queuing, dispatch and the prefill itself."""
    return _floats(columns, "first_token_s") - _floats(columns, "arrival_s")


def time_to_first_token(columns: Columns) -> FloatArray:
    """first_token_s - sent_s: as load generators count it, without the time that a late client loses before sending."""
    return _floats(columns, "first_token_s") - _floats(columns, "sent_s")


def decode_latency(columns: Columns) -> FloatArray:
    """(end_s - first_token_s) / (output_tokens - 1), and 0 for a request of one token.

    The mean gap between a request's tokens after the first; stalls by preemption and migration are in it. Percentiles
    are therefore over requests' means, not over gaps. Load generators call it TPOT.
    """
    gaps = _floats(columns, "output_tokens") - 1.0
    span_s = _floats(columns, "end_s") - _floats(columns, "first_token_s")
    return np.where(gaps > 0, span_s / np.maximum(gaps, 1.0), 0.0)


def preemption_loss(columns: Columns) -> FloatArray:
    """preemption_loss_s: over a request's preemptions, the time from each to the next token, less one decode step."""
    return _floats(columns, "preemption_loss_s")


def decode_execution_time(columns: Columns) -> FloatArray:
    """exec_s: the summed durations of the steps that the request was part of ("Decode Execution Time", Fig. 13)."""
    return _floats(columns, "exec_s")


def migration_downtime(columns: Columns) -> FloatArray:
    """migration_downtime_s / migrations: mean time without a step per migration; NaN for a request that never moved."""
    migrations = _floats(columns, "migrations")
    moved = migrations > 0
    return np.where(moved, _floats(columns, "migration_downtime_s") / np.where(moved, migrations, 1.0), np.nan)


def migration_gap(columns: Columns) -> FloatArray:
    """migration_gap_s / migrations: mean time between the tokens before and after a migration, decode step included.

    NaN for a request that never moved.
    """
    migrations = _floats(columns, "migrations")
    moved = migrations > 0
    return np.where(moved, _floats(columns, "migration_gap_s") / np.where(moved, migrations, 1.0), np.nan)


def meets_slo(columns: Columns, slo: Slo) -> npt.NDArray[np.bool_]:
    """Finished, with TTFT <= slo.ttft_s and TPOT (decode latency) <= slo.tpot_s, of which one may be no limit."""
    meets: npt.NDArray[np.bool_] = np.asarray(columns["status"], dtype=str) == FINISHED
    for latency_s, limit_s in ((time_to_first_token, slo.ttft_s), (decode_latency, slo.tpot_s)):
        if limit_s is not None:
            meets &= latency_s(columns) <= limit_s
    return meets


def slo_attainment(columns: Columns, slo: Slo) -> float:
    """Requests that meet the SLO / all requests, rejected and failed ones among them; NaN if there are none."""
    meets = meets_slo(columns, slo)
    return float(meets.mean()) if len(meets) else math.nan


def goodput_per_s(columns: Columns, slo: Slo) -> float:
    """Requests that meet the SLO / duration_s: the part of the throughput that was worth it; NaN if nothing ended."""
    run_s = duration_s(columns)
    return int(np.count_nonzero(meets_slo(columns, slo))) / run_s if run_s > 0 else math.nan


def duration_s(columns: Columns) -> float:
    """max(end_s) - min(arrival_s) over all requests; 0 if nothing ended."""
    end_s = _floats(columns, "end_s")
    ended = end_s[np.isfinite(end_s)]
    return float(ended.max() - _floats(columns, "arrival_s").min()) if len(ended) else 0.0


def mean_rate_per_s(times_s: FloatArray) -> float:
    """(n - 1) / (last - first): requests per second; 0 if there are fewer than two distinct instants."""
    times_s = times_s[np.isfinite(times_s)]
    span_s = float(np.ptp(times_s)) if len(times_s) > 1 else 0.0
    return (len(times_s) - 1) / span_s if span_s > 0 else 0.0


def resource_cost(sizes: Columns) -> dict[str, float | int]:
    """What instances that come and go have cost (§6.5), from the size of the cluster over time.

    `sizes` has a row for each change and one for the end of the run: time_s, the number of instances that are starting
    and that are up from then on, and the steps completed until then.

    instance_s                        sum of (starting + up) * time: an instance costs from when it is asked for
    instances_mean                    instance_s / duration: the average over time
    instances_max                     the most at any time
    instances_step_weighted_mean      sum of up * steps / steps: what the released code calls average instance number,
                                      which counts busy times more and instances only once they serve
    """
    time_s, starting, up, steps = (_floats(sizes, name) for name in ("time_s", "starting", "up", "steps"))
    lengths_s, done, held = np.diff(time_s), np.diff(steps), (starting + up)[:-1]
    cost: dict[str, float | int] = {"instance_s": float(held @ lengths_s), "instances_max": int((starting + up).max())}
    if lengths_s.sum() > 0:
        cost["instances_mean"] = float(held @ lengths_s / lengths_s.sum())
    if done.sum() > 0:
        cost["instances_step_weighted_mean"] = float(up[:-1] @ done / done.sum())
    return cost


LATENCIES: dict[str, Callable[[Columns], FloatArray]] = {
    "request_latency": request_latency,
    "prefill_latency": prefill_latency,
    "decode_latency": decode_latency,
}


def summarize(columns: Columns, slo: Slo | None = None) -> dict[str, float | int]:
    """The flat scalars of summary.json, units in the keys; with an SLO that is given, also how well it was met.

    Only requests with status "finished" enter latencies, losses and tokens; the others are counted by status. With
    more than one priority class the request-level keys come again for each, prefixed `normal_` and `high_`. A
    statistic of nothing (no finished request, no migration) is left out rather than written as NaN, which JSON lacks.
    """
    columns = {name: np.asarray(column) for name, column in columns.items()}
    priority = columns["priority"]
    finished = np.asarray(columns["status"], dtype=str) == FINISHED
    slo = slo or Slo()
    summary = _request_scalars(columns, slo) | _run_scalars(columns, finished, slo)
    classes = [cls for cls in Priority if np.any(priority == cls)]
    if len(classes) > 1:
        for cls in classes:
            of_class = _request_scalars(_rows(columns, priority == cls), slo)
            summary |= {f"{cls.name.lower()}_{key}": value for key, value in of_class.items()}
    return summary


def _request_scalars(columns: Columns, slo: Slo) -> dict[str, float | int]:
    status = np.asarray(columns["status"], dtype=str)
    done = _rows(columns, status == FINISHED)
    preemptions, migrations = _floats(columns, "preemptions"), _floats(columns, "migrations")
    scalars: dict[str, float | int] = {"requests": len(status)}
    scalars |= {FINISHED: 0, "rejected": 0, "failed": 0}
    scalars |= {str(name): int(count) for name, count in zip(*np.unique(status, return_counts=True), strict=True)}
    scalars |= {
        "preemptions": int(preemptions.sum()),
        "preempted_requests": int(np.count_nonzero(preemptions)),
        "migrations": int(migrations.sum()),
        "migrated_requests": int(np.count_nonzero(migrations)),
    }
    for name, metric in LATENCIES.items():
        scalars |= _statistics(name, metric(done), PERCENTILES)
    scalars |= _statistics("ttft", time_to_first_token(done), PERCENTILES)
    scalars |= _statistics("preemption_loss", preemption_loss(done), ())
    scalars |= _statistics("exec", decode_execution_time(done), ())
    scalars |= _statistics("migration_downtime", migration_downtime(done), (99,))
    scalars |= _statistics("migration_gap", migration_gap(done), (99,))
    scalars |= _statistics("max_token_gap", _floats(done, "max_token_gap_s"), (99,))
    if slo.given and len(status):
        scalars["slo_attainment"] = slo_attainment(columns, slo)
    return scalars


def _run_scalars(columns: Columns, finished: npt.NDArray[np.bool_], slo: Slo) -> dict[str, float | int]:
    run_s = duration_s(columns)
    output_tokens = int(np.asarray(columns["output_tokens"])[finished].sum())
    prompt_tokens = int(np.asarray(columns["prompt_tokens"])[finished].sum())
    scalars: dict[str, float | int] = {
        "duration_s": run_s,
        "requested_rate_per_s": mean_rate_per_s(_floats(columns, "arrival_s")),
        "achieved_rate_per_s": mean_rate_per_s(_floats(columns, "sent_s")),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
    }
    if run_s > 0:
        scalars["finished_per_s"] = int(np.count_nonzero(finished)) / run_s
        scalars["output_tokens_per_s"] = output_tokens / run_s
        scalars["total_tokens_per_s"] = (prompt_tokens + output_tokens) / run_s
        if slo.given:
            scalars["goodput_per_s"] = goodput_per_s(columns, slo)
    return scalars


def _statistics(name: str, values: FloatArray, percentiles: tuple[int, ...]) -> dict[str, float]:
    """Mean and percentiles (linear interpolation) of the values that exist."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return {}
    at = np.percentile(values, percentiles) if percentiles else ()
    tail = {f"{name}_p{q}_s": float(value) for q, value in zip(percentiles, at, strict=True)}
    return {f"{name}_mean_s": float(values.mean()), **tail}


def _rows(columns: Columns, keep: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.asarray(column)[keep] for name, column in columns.items()}


def _floats(columns: Columns, name: str) -> FloatArray:
    return np.asarray(columns[name], dtype=np.float64)
