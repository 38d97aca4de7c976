"""Metric formulas against values worked out by hand, and the bounds that hold for every run."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llumnix import metrics
from llumnix.errors import ConfigError
from llumnix.metrics import Slo

NAN = math.nan


def table(**changes: list[Any]) -> dict[str, Any]:
    """Four requests: two plain, one of a single token that was preempted and moved, one rejected."""
    columns: dict[str, Any] = {
        "request_id": [0, 1, 2, 3],
        "arrival_s": [0.0, 1.0, 2.0, 4.0],
        "sent_s": [0.0, 1.5, 2.0, 4.0],
        "dispatch_s": [0.0, 1.5, 2.0, NAN],
        "first_token_s": [1.0, 3.0, 7.0, NAN],
        "end_s": [5.0, 11.0, 7.0, 4.0],
        "prompt_tokens": [10, 20, 30, 99999],
        "output_tokens": [5, 3, 1, 7],
        "priority": [0, 0, 1, 0],
        "preemptions": [0, 2, 1, 0],
        "preemption_loss_s": [0.0, 1.5, 3.0, 0.0],
        "migrations": [0, 2, 0, 0],
        "migration_downtime_s": [0.0, 0.05, 0.0, 0.0],
        "migration_gap_s": [0.0, 0.09, 0.0, 0.0],
        "max_token_gap_s": [1.0, 6.0, NAN, NAN],
        "exec_s": [4.0, 6.0, 1.0, 0.0],
        "status": ["finished", "finished", "finished", "rejected"],
        "error": ["", "", "", "longer than an instance"],
    }
    return columns | changes


def test_each_formula_by_hand() -> None:
    columns = table()
    assert metrics.request_latency(columns)[:3].tolist() == [5.0, 10.0, 5.0]
    assert metrics.prefill_latency(columns)[:3].tolist() == [1.0, 2.0, 5.0]
    assert metrics.time_to_first_token(columns)[:3].tolist() == [1.0, 1.5, 5.0]
    assert metrics.decode_latency(columns)[:3].tolist() == [1.0, 4.0, 0.0]
    assert metrics.preemption_loss(columns)[:3].tolist() == [0.0, 1.5, 3.0]
    assert metrics.decode_execution_time(columns)[:3].tolist() == [4.0, 6.0, 1.0]
    np.testing.assert_array_equal(metrics.migration_downtime(columns), [NAN, 0.025, NAN, NAN])
    np.testing.assert_array_equal(metrics.migration_gap(columns), [NAN, 0.045, NAN, NAN])


def test_summary_counts_everything_but_averages_only_what_finished() -> None:
    summary = metrics.summarize(table())
    assert {key: summary[key] for key in ("requests", "finished", "rejected", "failed")} == {
        "requests": 4,
        "finished": 3,
        "rejected": 1,
        "failed": 0,
    }
    assert summary["request_latency_mean_s"] == pytest.approx(20 / 3)
    assert summary["request_latency_p50_s"] == 5.0
    assert summary["request_latency_p80_s"] == pytest.approx(8.0)  # linear between the 2nd and 3rd of [5, 5, 10]
    assert summary["preemption_loss_mean_s"] == pytest.approx(1.5)  # over all finished requests, not the preempted
    assert summary["exec_mean_s"] == pytest.approx(11 / 3)
    assert (summary["preemptions"], summary["preempted_requests"]) == (3, 2)
    assert (summary["migrations"], summary["migrated_requests"]) == (2, 1)
    assert summary["migration_downtime_mean_s"] == pytest.approx(0.025)
    assert summary["max_token_gap_p99_s"] == pytest.approx(5.95)


def test_ttft_is_from_sending_and_has_all_percentiles() -> None:
    summary = metrics.summarize(table())  # 1.0, 1.5 and 5.0 s
    assert summary["ttft_p50_s"] == 1.5
    assert summary["ttft_p80_s"] == pytest.approx(3.6)
    assert summary["ttft_p99_s"] == pytest.approx(4.93)


@pytest.mark.parametrize(
    ("slo", "meets"),
    [
        (Slo(ttft_s=1.5), [True, True, False, False]),  # 1.0, 1.5, 5.0 and none, since it was rejected
        (Slo(tpot_s=1.0), [True, False, True, False]),  # 1.0, 4.0 and 0 for the request of one token
        (Slo(ttft_s=1.2, tpot_s=1.0), [True, False, False, False]),
        (Slo(), [True, True, True, False]),
    ],
)
def test_an_slo_by_hand(slo: Slo, meets: list[bool]) -> None:
    columns = table()
    assert metrics.meets_slo(columns, slo).tolist() == meets
    assert metrics.slo_attainment(columns, slo) == sum(meets) / 4
    assert metrics.goodput_per_s(columns, slo) == sum(meets) / 11.0
    summary = metrics.summarize(columns, slo)
    if slo.given:
        assert summary["slo_attainment"] == sum(meets) / 4
        assert summary["normal_slo_attainment"] == sum(meets[i] for i in (0, 1, 3)) / 3
        assert summary["high_slo_attainment"] == float(meets[2])
        assert summary["goodput_per_s"] == sum(meets) / 11.0


def test_without_an_slo_the_summary_says_nothing_of_one() -> None:
    assert metrics.summarize(table(), Slo()) == metrics.summarize(table())
    assert not [key for key in metrics.summarize(table()) if "slo" in key or "goodput" in key]


def test_an_slo_on_nothing_is_no_number() -> None:
    nothing: dict[str, Any] = {name: [] for name in table()}
    assert math.isnan(metrics.slo_attainment(nothing, Slo(ttft_s=1)))
    assert math.isnan(metrics.goodput_per_s(nothing, Slo(ttft_s=1)))
    assert "slo_attainment" not in metrics.summarize(nothing, Slo(ttft_s=1))


@pytest.mark.parametrize("limit_s", [0.0, -1.0, math.inf, NAN])
def test_a_limit_that_is_no_time_is_refused(limit_s: float) -> None:
    with pytest.raises(ConfigError, match=r"slo\.tpot_s must be a positive number of seconds"):
        Slo(tpot_s=limit_s)


def test_rates_and_throughput_are_per_second_of_the_run() -> None:
    summary = metrics.summarize(table())
    assert summary["duration_s"] == 11.0
    assert summary["requested_rate_per_s"] == pytest.approx(3 / 4)
    assert summary["achieved_rate_per_s"] == pytest.approx(3 / 4)
    assert summary["finished_per_s"] == pytest.approx(3 / 11)
    assert summary["output_tokens_per_s"] == pytest.approx(9 / 11)
    assert summary["total_tokens_per_s"] == pytest.approx(69 / 11)


def test_two_classes_are_reported_apart_and_one_class_is_not() -> None:
    summary = metrics.summarize(table())
    assert (summary["normal_requests"], summary["high_requests"]) == (3, 1)
    assert summary["normal_prefill_latency_mean_s"] == pytest.approx(1.5)
    assert summary["high_prefill_latency_p99_s"] == 5.0
    assert not [key for key in metrics.summarize(table(priority=[0] * 4)) if key.startswith(("normal_", "high_"))]


def test_nothing_finished_leaves_statistics_out_and_stays_json() -> None:
    summary = metrics.summarize(table(status=["failed"] * 4, end_s=[NAN] * 4))
    assert (summary["failed"], summary["finished"], summary["duration_s"]) == (4, 0, 0.0)
    assert "request_latency_mean_s" not in summary
    json.dumps(summary, allow_nan=False)


def test_unknown_status_is_counted_under_its_own_name() -> None:
    assert metrics.summarize(table(status=["finished", "aborted", "finished", "aborted"]))["aborted"] == 2


def test_an_empty_run_has_counts_of_zero() -> None:
    summary = metrics.summarize({name: [] for name in table()})
    assert (summary["requests"], summary["finished"], summary["duration_s"]) == (0, 0, 0.0)


times = st.floats(0.0, 1e4)


@settings(deadline=None)
@given(st.lists(st.tuples(times, times, times, st.integers(1, 500), st.integers(0, 1)), min_size=1, max_size=30))
def test_bounds_hold_for_every_run(rows: list[tuple[float, float, float, int, int]]) -> None:
    arrival, queue, decode, output, priority = (np.array(column) for column in zip(*rows, strict=True))
    n = len(rows)
    summary = metrics.summarize(
        {
            "arrival_s": arrival,
            "sent_s": arrival,
            "first_token_s": arrival + queue,
            "end_s": arrival + queue + np.where(output > 1, decode, 0.0),
            "prompt_tokens": np.ones(n),
            "output_tokens": output,
            "priority": priority,
            "preemptions": np.zeros(n),
            "preemption_loss_s": np.zeros(n),
            "migrations": np.zeros(n),
            "migration_downtime_s": np.zeros(n),
            "migration_gap_s": np.zeros(n),
            "max_token_gap_s": decode,
            "exec_s": decode,
            "status": np.full(n, "finished"),
        }
    )
    for name in metrics.LATENCIES:
        ladder = [summary[f"{name}_p{q}_s"] for q in metrics.PERCENTILES]
        assert ladder == sorted(ladder)
        assert ladder[0] >= -1e-9
        assert summary[f"{name}_mean_s"] >= -1e-9
    assert summary["prefill_latency_mean_s"] <= summary["request_latency_mean_s"] + 1e-6
    columns = {"status": np.full(n, "finished"), "sent_s": arrival, "first_token_s": arrival + queue}
    columns |= {"arrival_s": arrival, "end_s": arrival + queue + decode, "output_tokens": output}
    attained = [metrics.slo_attainment(columns, Slo(ttft_s=limit_s)) for limit_s in (1e-3, 10.0, 1e3, 2e4)]
    assert attained == sorted(attained)
    assert attained[-1] == 1.0
    assert summary["request_latency_p99_s"] <= summary["duration_s"] + 1e-6
    if "high_requests" in summary:
        assert summary["high_requests"] + summary["normal_requests"] == n
        weighted = sum(summary[f"{c}_requests"] * summary[f"{c}_request_latency_mean_s"] for c in ("high", "normal"))
        assert weighted / n == pytest.approx(summary["request_latency_mean_s"], rel=1e-9, abs=1e-9)


def test_the_cost_of_instances_that_come_and_go() -> None:
    """2 instances for 10 s, a third starts for 5 s and serves for 20 s, then one goes and 2 serve for 5 s."""
    sizes = {
        "time_s": [0.0, 10.0, 15.0, 35.0, 40.0],
        "starting": [0, 1, 0, 0, 0],
        "up": [2, 2, 3, 2, 2],
        "steps": [0, 100, 140, 740, 800],
    }
    cost = metrics.resource_cost(sizes)
    assert cost["instance_s"] == 2 * 10 + 3 * 5 + 3 * 20 + 2 * 5
    assert cost["instances_mean"] == cost["instance_s"] / 40
    assert cost["instances_max"] == 3
    assert cost["instances_step_weighted_mean"] == (2 * 100 + 2 * 40 + 3 * 600 + 2 * 60) / 800


def test_a_cluster_that_lived_for_no_time_has_no_average() -> None:
    cost = metrics.resource_cost({"time_s": [0.0, 0.0], "starting": [0, 0], "up": [4, 4], "steps": [0, 0]})
    assert cost == {"instance_s": 0.0, "instances_max": 4}
