"""Every way in which a migration can fail, made to happen: the request goes on where it was and loses nothing.

Steps take 30 ms whatever the batch and messages 1 ms, so that times can be worked out by hand. The freest of idle
instances is the last one, so requests that come together start on instance 1; instance 0 stays idle, which makes it
the destination. Token number k + 1 of the first requests comes at 15 + 30 k ms; the round is at 200 ms.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cases import Case, settled, workload
from reference import ReferenceInstance

from llumnix.cluster.spec import ClusterSpec
from llumnix.cluster.virtual import VirtualCluster
from llumnix.engines.sim.cost import StepCost
from llumnix.engines.sim.prefill_first import PrefillFirstInstance
from llumnix.engines.sim.request import SimRequest
from llumnix.engines.sim.spec import SimEngine
from llumnix.policies.migration import HighPriorityMoves, MigrationMethod, MigrationPolicy
from llumnix.policies.spec import Scheduler
from llumnix.request import Priority

STEP_S, CONTROL_S, COPY_S, ROUND_S = 0.030, 0.001, 0.070, 0.2
COST = StepCost(step_gap_ms=5, decode_base_ms=25, prefill_floor_ms=10, copy_bandwidth_gb_s=1e9, control_ms=1)
LONG_AGO_OVER = (1000.0, 1, 1, 0)  # keeps the run going until every migration has ended
BOTH_WORLDS = pytest.mark.parametrize(
    "instance_type", [PrefillFirstInstance, ReferenceInstance], ids=["fast", "reference"]
)


def case(
    *lengths: tuple[int, int],
    copy_ms: float = COPY_S * 1000,
    kv_tokens: int = 1600,
    block_size_tokens: int = 1,
    watermark_fraction: float = 0.0,
    max_stages: int = 3,
    control_ms: float = 1.0,
    priority: Priority = Priority.NORMAL,
) -> Case:
    """Return requests of the given prompt and output lengths that start together on instance 1, and one round."""
    rows = [(0.0, prompt, output, int(priority)) for prompt, output in lengths]
    return Case(
        workload([*rows, LONG_AGO_OVER]),
        ClusterSpec(
            instances=2,
            block_size_tokens=block_size_tokens,
            kv_blocks=kv_tokens // block_size_tokens,
            watermark_fraction=watermark_fraction,
        ),
        replace(COST, copy_latency_ms=copy_ms, last_copy_latency_ms=copy_ms, control_ms=control_ms),
        Scheduler(
            # whoever runs anything is a source, only the idle are destinations
            migration=MigrationPolicy(
                enabled=True,
                period_s=ROUND_S,
                out_threshold_blocks=1e6,
                in_threshold_blocks=1e6,
                high_priority=HighPriorityMoves.last,
                max_stages=max_stages,
            )
        ),
        SimEngine(sample_period_s=100.0),
    )


def only_first_round(cluster: VirtualCluster) -> VirtualCluster:
    """Hold one migration round instead of one every period."""
    hold, held = cluster.scheduler.migration_round, []

    def once(now: float) -> list[Any]:
        if held:
            return []
        held.append(now)
        return hold(now)

    cluster.scheduler.migration_round = once
    return cluster


def migration_events(cluster: VirtualCluster) -> list[tuple[str, float, str]]:
    """Run the cluster; return the events of its migrations as (kind, time, detail)."""
    events = cluster.run().events
    rows = zip(events["kind"], events["time_s"], events["detail"], strict=True)
    return [(kind, pytest.approx(float(time_s)), detail) for kind, time_s, detail in rows if kind.startswith("migrate")]


def assert_nothing_is_lost(cluster: VirtualCluster) -> None:
    for request in cluster.requests:
        assert request.status == "finished"
        assert request.generated == request.output_tokens
    for instance in cluster.instances:
        assert instance.free_blocks == instance.total_blocks
        assert (instance.inbound, instance.high_priority, instance.migrating) == (0, 0, False)


def refusing(instance_type: type, number: int) -> type:
    """Return instances that refuse reservation `number` of a run, however much memory they have."""

    class Refusing(instance_type):
        asked = 0

        def reserve(self, blocks: int, now_ps: int, *, seat: bool) -> bool:
            Refusing.asked += 1
            return Refusing.asked != number and super().reserve(blocks, now_ps, seat=seat)

    return Refusing


def max_gap_s(request: SimRequest) -> float:
    return request.max_gap_ps / 1e12


@BOTH_WORLDS
def test_without_a_fault_the_migration_commits(instance_type: type) -> None:
    cluster = only_first_round(case((64, 100)).build(instance_type))
    kinds = [kind for kind, *_ in migration_events(cluster)]
    assert kinds == ["migrate_start", *["migrate_stage"] * 3, "migrate_commit"]
    assert cluster.requests[0].instance_last == 0
    assert cluster.requests[0].downtime_ps > 0
    assert_nothing_is_lost(cluster)


@BOTH_WORLDS
def test_a_request_moved_by_recompute_stands_still_until_its_prefill_has_ended(instance_type: type) -> None:
    recompute = case((64, 100))
    recompute.scheduler.migration.method = MigrationMethod.recompute
    cluster = only_first_round(recompute.build(instance_type))
    events = migration_events(cluster)
    assert [kind for kind, *_ in events] == ["migrate_start", "migrate_stage", "migrate_commit"]
    request = cluster.requests[0]
    assert (request.instance_last, request.preemptions) == (0, 0)
    # asked and answered, then a prefill of 10 ms and a gap
    assert request.downtime_ps / 1e12 == pytest.approx(2 * CONTROL_S + 0.015)
    assert request.gap_ps == request.downtime_ps  # it froze with its last token, and the prefill gave it the next
    assert_nothing_is_lost(cluster)


@BOTH_WORLDS
@pytest.mark.parametrize("priority", Priority)
@pytest.mark.parametrize("refused", [1, 2])
def test_a_refusal_while_the_request_decodes_costs_it_nothing(
    refused: int, priority: Priority, instance_type: type
) -> None:
    undisturbed = case((64, 100))
    undisturbed = replace(undisturbed, scheduler=Scheduler()).run()
    cluster = only_first_round(case((64, 100), priority=priority).build(refusing(instance_type, refused)))
    events = migration_events(cluster)
    # each stage: reserve, copy; the refusal: there and back
    abort_s = ROUND_S + (refused - 1) * (2 * CONTROL_S + COPY_S) + 2 * CONTROL_S
    assert [kind for kind, *_ in events] == ["migrate_start", *["migrate_stage"] * (refused - 1), "migrate_abort"]
    assert events[-1] == ("migrate_abort", abort_s, "no_memory")
    request = cluster.requests[0]
    assert request.instance_last == 1
    assert (request.migrations, request.downtime_ps) == (0, 0)
    assert request.end_ps / 1e12 == undisturbed.requests["end_s"][0]
    assert_nothing_is_lost(cluster)


@BOTH_WORLDS
@pytest.mark.parametrize("priority", Priority)
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_after_a_refusal_of_the_last_stage_the_source_takes_the_frozen_request_back(
    stages: int, priority: Priority, instance_type: type
) -> None:
    cluster = only_first_round(
        case((64, 100), max_stages=stages, priority=priority).build(refusing(instance_type, stages))
    )
    events = migration_events(cluster)
    assert [kind for kind, *_ in events] == ["migrate_start", *["migrate_stage"] * (stages - 1), "migrate_abort"]
    assert events[-1][2] == "no_memory"
    request = cluster.requests[0]
    assert request.instance_last == 1
    assert request.migrations == 0
    # frozen at a step's end, it asks, is refused and goes on at once on the instance that has nothing else to do
    assert max_gap_s(request) == pytest.approx(STEP_S + 2 * CONTROL_S)
    assert request.end_ps / 1e12 == pytest.approx(0.015 + 99 * STEP_S + 2 * CONTROL_S)
    assert_nothing_is_lost(cluster)


@BOTH_WORLDS
def test_a_frozen_request_that_is_given_back_joins_a_running_batch_at_its_next_step(instance_type: type) -> None:
    cluster = only_first_round(case((64, 100), (64, 100), max_stages=2).build(refusing(instance_type, 2)))
    assert migration_events(cluster)[-1][2] == "no_memory"
    stayed, moved = cluster.requests[:2]
    assert max_gap_s(stayed) == pytest.approx(0.015 + STEP_S)  # the other one's prompt came in between
    assert max_gap_s(moved) == pytest.approx(2 * STEP_S)
    assert moved.end_ps == stayed.end_ps + STEP_S * 1e12
    assert_nothing_is_lost(cluster)


@BOTH_WORLDS
def test_a_destination_without_memory_refuses_by_itself(instance_type: type) -> None:
    """Instance 0 reports that it is idle until its first step ends; but it has just taken in a prompt that fills it."""
    run = case((64, 100), kv_tokens=480)
    run = replace(run, workload=workload([(0.0, 64, 100, 0), (0.19, 440, 20, 0), LONG_AGO_OVER]))
    cluster = only_first_round(run.build(instance_type))
    events = migration_events(cluster)
    assert [(kind, detail) for kind, _, detail in events] == [("migrate_start", "to 0"), ("migrate_abort", "no_memory")]
    assert cluster.requests[1].instance_first == 0
    assert_nothing_is_lost(cluster)


@BOTH_WORLDS
@pytest.mark.parametrize("copy_ms", [40.0, 500.0])
def test_a_request_that_ends_during_a_copy_ends_the_migration_after_it(copy_ms: float, instance_type: type) -> None:
    cluster = only_first_round(case((64, 8), copy_ms=copy_ms).build(instance_type))  # ends at 225 ms
    events = migration_events(cluster)
    assert cluster.requests[0].end_ps == 225 * 10**9
    assert [kind for kind, *_ in events] == ["migrate_start", "migrate_stage", "migrate_abort"]
    assert events[-1] == ("migrate_abort", ROUND_S + 2 * CONTROL_S + copy_ms / 1000, "finished")
    assert_nothing_is_lost(cluster)


@BOTH_WORLDS
def test_a_request_that_ends_before_its_reservation_arrives_ends_the_migration(instance_type: type) -> None:
    cluster = only_first_round(case((64, 8), copy_ms=10, control_ms=40).build(instance_type))
    events = migration_events(cluster)
    assert cluster.requests[0].end_ps == 225 * 10**9  # the reservation arrives at 240 ms
    assert [kind for kind, *_ in events] == ["migrate_start", "migrate_stage", "migrate_abort"]
    assert events[-1] == ("migrate_abort", ROUND_S + 2 * 0.040 + 0.010, "finished")
    assert_nothing_is_lost(cluster)


@BOTH_WORLDS
def test_a_request_that_ends_in_the_step_before_its_freeze_ends_the_migration(instance_type: type) -> None:
    asked = []

    class Watched(instance_type):
        def freeze(self, request: SimRequest, now_ps: int) -> None:
            asked.append(now_ps)
            super().freeze(request, now_ps)

    # the copy is done at 252 ms, in the step that ends at 255 ms with the ninth and last token
    cluster = only_first_round(case((64, 9), copy_ms=50, max_stages=2).build(Watched))
    events = migration_events(cluster)
    assert asked == [252 * 10**9]
    assert cluster.requests[0].end_ps == 255 * 10**9
    assert [kind for kind, *_ in events] == ["migrate_start", "migrate_stage", "migrate_abort"]
    assert events[-1] == ("migrate_abort", 0.255 + CONTROL_S, "finished")
    assert_nothing_is_lost(cluster)


@BOTH_WORLDS
def test_one_token_later_the_freeze_comes_first(instance_type: type) -> None:
    cluster = only_first_round(case((64, 10), copy_ms=50, max_stages=2).build(instance_type))
    assert migration_events(cluster)[-1][0] == "migrate_commit"
    request = cluster.requests[0]
    # frozen at 255 ms; there and copied, it makes its last token in a step of the other instance
    assert request.downtime_ps == (2 * 1 + 50) * 10**9
    assert request.end_ps == (255 + 52 + 30) * 10**9
    assert_nothing_is_lost(cluster)


def crowded(copy_ms: float) -> Case:
    """Return two requests of nearly 200 tokens on 320: the younger one is on the move when the blocks run out."""
    return case((100, 100), (90, 100), copy_ms=copy_ms, kv_tokens=320, block_size_tokens=16, watermark_fraction=0.2)


@BOTH_WORLDS
def test_a_request_that_is_preempted_during_a_copy_stays(instance_type: type) -> None:
    cluster = only_first_round(crowded(2200).build(instance_type))
    events = migration_events(cluster)
    assert [kind for kind, *_ in events] == ["migrate_start", "migrate_stage", "migrate_abort"]
    assert events[-1] == ("migrate_abort", ROUND_S + 2 * CONTROL_S + 2.2, "preempted")
    older, younger = cluster.requests[:2]
    assert (older.preemptions, younger.preemptions) == (0, 1)
    assert (younger.instance_last, younger.migrations) == (1, 0)
    assert 2.5e12 < older.end_ps < younger.end_ps
    assert_nothing_is_lost(cluster)


@BOTH_WORLDS
def test_a_request_that_is_preempted_and_decodes_again_before_the_copy_is_done_stays(instance_type: type) -> None:
    cluster = only_first_round(crowded(3500).build(instance_type))
    events = migration_events(cluster)
    assert events[-1] == ("migrate_abort", ROUND_S + 2 * CONTROL_S + 3.5, "preempted")
    older, younger = cluster.requests[:2]
    assert older.end_ps < 3.7e12 < younger.end_ps
    assert (younger.instance_last, younger.migrations) == (1, 0)
    assert_nothing_is_lost(cluster)


@BOTH_WORLDS
def test_after_an_abort_the_next_round_tries_again(instance_type: type) -> None:
    run = settled(case((64, 30), max_stages=2), refusing(instance_type, 2))
    details = [(kind, detail) for kind, _, detail in migration_events(run)]
    assert ("migrate_abort", "no_memory") in details
    assert ("migrate_commit", "from 1") in details[details.index(("migrate_abort", "no_memory")) :]
    assert_nothing_is_lost(run)
