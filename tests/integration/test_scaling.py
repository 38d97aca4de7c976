"""Instances come and go, and nobody notices but the bill: no request is lost, none is where nothing serves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import A10, Case, cases, examples, heavy_tailed, workload
from hypothesis import assume, given
from reference import ReferenceInstance
from test_exactness import assert_same_records

from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.cost import StepCost
from llumnix.engines.sim.spec import SimEngine
from llumnix.errors import ConfigError
from llumnix.metrics import resource_cost
from llumnix.policies.migration import MigrationPolicy
from llumnix.policies.scaling import ScalingPolicy
from llumnix.policies.spec import LoadReports, Scheduler

Event = tuple[float, str, int | None, int | None, str | None]


def events(case: Case, *kinds: str) -> list[Event]:
    """Return the events of a run of these kinds, or all."""
    rows = zip(*case.run().events.values(), strict=True)
    return [row for row in rows if not kinds or row[1] in kinds]


@examples(60)
@given(cases())
def test_nobody_is_where_nothing_serves(case: Case) -> None:
    scaling = case.scheduler.scaling
    assume(scaling.enabled)
    result = case.run()
    up: dict[int, float] = {}
    down: dict[int, float] = {}
    asked: set[int] = set()
    draining: int | None = None
    for time_s, kind, instance, _, detail in zip(*result.events.values(), strict=True):
        match kind:
            case "scale_up":
                assert instance not in up
                assert draining is None
                asked.add(instance)
            case "instance_up":
                assert instance in asked or time_s == 0
                up[instance] = time_s
            case "scale_down":
                assert draining is None
                draining = instance
            case "drain" if detail.startswith("cancelled"):
                assert draining == instance
                draining = None
            case "instance_down":
                assert draining == instance
                draining = None
                down[instance] = time_s
            case "dispatch":
                assert instance in up.keys() - down.keys() - {draining}
            case "migrate_start" | "migrate_commit" | "preempt":
                assert instance in up.keys() - down.keys()
        assert len(up) - len(down) >= scaling.min_instances or kind == "instance_up"  # at the start, one by one
        assert len(up.keys() | asked) - len(down) <= scaling.max_instances
    for instance, end_s in zip(result.requests["instance_last"], result.requests["end_s"], strict=True):
        assert instance is None or end_s < down.get(instance, np.inf)
    samples = result.instances
    for time_s, instance in zip(samples["time_s"], samples["instance_id"], strict=True):
        assert up[instance] <= time_s <= down.get(instance, np.inf)


@examples(60)
@given(cases())
def test_the_account_of_instances_agrees_with_the_events(case: Case) -> None:
    assume(case.scheduler.scaling.enabled)
    result = case.run()
    sizes = {name: np.asarray(column) for name, column in result.sizes.items()}
    begun: dict[int, float] = {}
    instance_s = 0.0
    for time_s, kind, instance, *_ in zip(*result.events.values(), strict=True):
        if kind in ("scale_up", "instance_up"):
            begun.setdefault(instance, time_s)
        elif kind == "instance_down":
            instance_s += time_s - begun.pop(instance)
    end_s = sizes["time_s"][-1]
    instance_s += sum(end_s - time_s for time_s in begun.values())
    assert resource_cost(sizes)["instance_s"] == pytest.approx(instance_s)
    assert (np.diff(sizes["time_s"]) >= 0).all()
    assert (np.diff(sizes["steps"]) >= 0).all()
    done_s = result.requests["end_s"]
    assert end_s == pytest.approx(done_s.max()), "the account ends with the last request"


def test_the_account_counts_every_step() -> None:
    """One request at a time, whose steps are a prefill and then a token each."""
    case = Case(
        workload([(0.0, 16, 20, 0), (10.0, 16, 5, 0)]),
        ClusterSpec(instances=2, kv_blocks=100),
        StepCost(step_gap_ms=5, decode_base_ms=25, prefill_floor_ms=25),
        Scheduler(scaling=ScalingPolicy(enabled=True, low_blocks=0, width_blocks=0, first_check_s=9.0)),
        SimEngine(),
    )
    sizes = case.run().sizes
    assert sizes["up"] == [2, 1, 1]
    assert sizes["steps"] == [0, 20, 25]
    assert sizes["time_s"] == pytest.approx([0.0, 9.001, 10.15])  # the check and a message; five steps of 30 ms


# --- drains, worked out by hand: steps of 30 ms, a check every second, messages of 1 ms


def drained(*rows: tuple[float, int, int, int], migrate: bool, low: float = 0, width: float = 20) -> Case:
    """Return two instances of 100 blocks of 16 tokens, of which one may go at the check after 1 s."""
    return Case(
        workload(list(rows)),
        ClusterSpec(instances=2, kv_blocks=100, watermark_fraction=0.0),
        StepCost(step_gap_ms=5, decode_base_ms=25, prefill_floor_ms=25, copy_bandwidth_gb_s=1e9),
        Scheduler(
            load_reports=LoadReports.immediate,
            migration=MigrationPolicy(enabled=migrate, out_threshold_blocks=-1e9, in_threshold_blocks=0),
            scaling=ScalingPolicy(
                enabled=True, low_blocks=low, width_blocks=width, check_period_s=1.0, first_check_s=1.0, startup_s=2.0
            ),
        ),
        SimEngine(),
    )


TWO_LONG = ((0.0, 16, 300, 0), (0.01, 16, 400, 0))  # the first goes to instance 1, the second to instance 0


def test_without_migration_a_drain_waits_for_the_last_request() -> None:
    rows = events(drained(*TWO_LONG, migrate=False), "scale_down", "drain", "instance_down", "migrate_commit")
    assert [(kind, instance) for _, kind, instance, *_ in rows] == [
        ("scale_down", 1),
        ("drain", 1),
        ("instance_down", 1),
    ]
    assert [time_s for time_s, *_ in rows] == pytest.approx([1.0, 1.0, 300 * 0.03 + 0.001])


@pytest.mark.parametrize("priority", [0, 1])
def test_with_migration_a_drain_gives_its_requests_away_those_of_high_priority_too(priority: int) -> None:
    long = [(*row[:3], priority) for row in TWO_LONG]
    if priority:  # one in each place: a class of its own would gather
        long[1] = (*long[1][:3], 0)
    rows = events(drained(*long, migrate=True), "scale_down", "instance_down", "migrate_start", "migrate_commit")
    assert [(kind, instance) for _, kind, instance, *_ in rows] == [
        ("scale_down", 1),
        ("migrate_start", 1),
        ("migrate_commit", 0),
        ("instance_down", 1),
    ]
    assert rows[-1][0] < 1.5


def test_need_during_a_drain_cancels_it() -> None:
    """At 1 s instance 1 is to go; 90 requests come at 1.5 s, so at 2 s it stays, and what comes next may go there."""
    burst = [(1.5, 16, 60, 0)] * 90
    case = drained(*TWO_LONG, *burst, (2.1, 16, 5, 0), migrate=False, low=1)
    kinds = events(case, "scale_up", "scale_down", "drain", "instance_down")
    assert [(kind, instance) for time_s, kind, instance, *_ in kinds if time_s < 2.5] == [
        ("scale_down", 1),
        ("drain", 1),
        ("drain", 1),
    ]
    assert kinds[2][4].startswith("cancelled")
    dispatched = {request: instance for _, _, instance, request, _ in events(case, "dispatch")}
    assert {dispatched[i] for i in range(2, 92)} == {0}
    assert dispatched[92] == 1


def test_a_new_instance_serves_after_its_start_up_and_takes_the_next_request() -> None:
    case = drained(*[(0.0, 320, 200, 0)] * 8, (3.5, 16, 5, 0), migrate=False, low=15, width=1000)
    rows = [row for row in events(case, "scale_up", "instance_up") if row[2] <= 2]  # they fill up again
    assert [(kind, instance) for _, kind, instance, *_ in rows] == [
        ("instance_up", 0),
        ("instance_up", 1),
        ("scale_up", 2),
        ("instance_up", 2),
    ]
    assert (rows[2][0], rows[2][4]) == (1.0, "freeness 3.00")  # 24 blocks for 8 requests
    assert rows[3][0] == pytest.approx(1.0 + 2.0 + 0.001)
    assert events(case, "dispatch")[-1][2] == 2


@pytest.mark.parametrize("instances", [1, 9])
def test_a_cluster_that_begins_outside_its_bounds_is_refused(instances: int) -> None:
    case = drained(*TWO_LONG, migrate=True)
    scaling = replace(case.scheduler.scaling, min_instances=2, max_instances=8)
    wrong = replace(
        case,
        cluster=ClusterSpec(instances=instances, kv_blocks=100),
        scheduler=replace(case.scheduler, scaling=scaling),
    )
    with pytest.raises(ConfigError, match=f"cluster.instances={instances} must lie between"):
        wrong.run()


# --- a larger run


def elastic(migrate: bool) -> Case:
    """Return a heavy-tailed load whose rate doubles half-way, on two to six instances."""
    calm = heavy_tailed(150, rate=0.6, mean_tokens=250, high_fraction=0.1)
    busy = heavy_tailed(250, rate=4.0, mean_tokens=250, high_fraction=0.1, seed=1)
    rows: list[Any] = [
        *zip(calm.arrival_s, calm.prompt_tokens, calm.output_tokens, calm.priority, strict=True),
        *zip(busy.arrival_s + calm.arrival_s[-1], busy.prompt_tokens, busy.output_tokens, busy.priority, strict=True),
    ]
    return Case(
        workload(rows),
        ClusterSpec(instances=3, kv_blocks=300),
        A10,
        Scheduler(
            load_reports=LoadReports.immediate,
            migration=MigrationPolicy(enabled=migrate, out_threshold_blocks=3, in_threshold_blocks=3),
            scaling=ScalingPolicy(
                enabled=True, low_blocks=10, width_blocks=30, check_period_s=2.0, min_instances=2, max_instances=6
            ),
        ),
        SimEngine(),
        kv_bytes_per_token=524_288,
    )


@pytest.mark.parametrize("migrate", [True, False])
def test_an_elastic_run_is_that_of_the_step_by_step_reference(migrate: bool) -> None:
    case = elastic(migrate)
    fast = case.run()
    assert_same_records(fast, case.run(ReferenceInstance))
    kinds = Counter(fast.events["kind"])
    assert min(kinds[k] for k in ("scale_up", "instance_up", "scale_down", "instance_down")) > 1
    assert fast.requests["status"] == ["finished"] * len(case.workload)


def test_drains_by_migration_cost_less() -> None:
    cost = {migrate: resource_cost(elastic(migrate).run().sizes) for migrate in (True, False)}
    assert cost[True]["instance_s"] < cost[False]["instance_s"]
