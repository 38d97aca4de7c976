"""The global scheduler on reports that a test writes by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from llumnix.load import FreenessRule, InstanceLoad
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.migration import MigrationPolicy, Pair
from llumnix.policies.scaling import CancelDrain, ScaleDown, ScaleUp, ScalingPolicy
from llumnix.policies.spec import Scheduler
from llumnix.request import Priority
from llumnix.scheduler import GlobalScheduler

EMPTY = InstanceLoad(0, 0, 0, 0, 0, 100, 100, 0, 16, 0, 0)


class Reports:
    """A report source whose loads a test writes; `reads` counts how often each of them was read.

    The outlook is the report, followed by the announced one if there is one.
    """

    def __init__(self, *free_blocks: int) -> None:
        self.loads = [replace(EMPTY, instance_id=i, running=1, free_blocks=f) for i, f in enumerate(free_blocks)]
        self.next_loads: dict[int, InstanceLoad] = {}
        self.quiet_for = 0.0
        self.asked: list[tuple[int, float]] = []
        self.reads = [0] * len(free_blocks)

    def latest(self, instance_id: int) -> InstanceLoad:
        self.reads[instance_id] += 1
        return self.loads[instance_id]

    def outlook(self, instance_id: int) -> tuple[InstanceLoad, InstanceLoad]:
        load = self.loads[instance_id]
        return load, self.next_loads.get(instance_id, load)

    def earliest_loss(self, instance_id: int, blocks: float) -> float:
        self.asked.append((instance_id, blocks))
        return self.quiet_for

    def free(self, instance_id: int, blocks: int) -> None:
        self.loads[instance_id] = replace(self.loads[instance_id], free_blocks=blocks)

    def announce(self, instance_id: int, blocks: int) -> None:
        """Let the report that comes next, without a touch, show so many free blocks."""
        self.next_loads[instance_id] = replace(self.loads[instance_id], free_blocks=blocks)

    def arrive(self, instance_id: int) -> None:
        """Let the announced report become visible."""
        self.loads[instance_id] = self.next_loads[instance_id]


def never() -> float:
    raise AssertionError("a rule that does not choose at random has drawn a number")


def scheduler(
    reports: Reports,
    *,
    persistent: bool = False,
    rule: DispatchRule = DispatchRule.freest,
    draws: Callable[[], float] = never,
) -> GlobalScheduler:
    policy = MigrationPolicy(enabled=True, out_threshold_blocks=3, in_threshold_blocks=3, persistent_pairs=persistent)
    freeness = FreenessRule(priorities=True, headroom_target_tokens=480)
    spec = Scheduler(dispatch=rule, freeness=freeness, migration=policy)
    return GlobalScheduler(spec, range(len(reports.loads)), reports, draws)


# --- dispatch


def test_round_robin_takes_turns_whatever_the_load() -> None:
    turns = scheduler(Reports(1, 90, 50), rule=DispatchRule.round_robin)
    assert [turns.dispatch(p) for p in (Priority.NORMAL, Priority.HIGH) * 3] == [0, 1, 2, 0, 1, 2]


def test_round_robin_goes_by_instance_id_in_whatever_order_they_were_given() -> None:
    turns = GlobalScheduler(Scheduler(dispatch=DispatchRule.round_robin), [2, 0, 1], Reports(1, 2, 3), never)
    assert [turns.dispatch(Priority.NORMAL) for _ in range(4)] == [0, 1, 2, 0]


def test_dispatch_goes_to_the_freest_and_among_equals_to_the_highest_id() -> None:
    assert scheduler(Reports(10, 40, 30)).dispatch(Priority.NORMAL) == 1
    assert scheduler(Reports(10, 40, 40, 7)).dispatch(Priority.NORMAL) == 2
    assert scheduler(Reports(5, 5, 5)).dispatch(Priority.NORMAL) == 2


def test_falling_freeness_is_seen_without_a_touch_and_rising_freeness_after_one() -> None:
    reports = Reports(10, 40, 30)
    ranked = scheduler(reports)
    assert ranked.dispatch(Priority.NORMAL) == 1
    reports.free(1, 20)
    assert ranked.dispatch(Priority.NORMAL) == 2
    reports.free(0, 99)
    ranked.touch(0)
    assert ranked.dispatch(Priority.NORMAL) == 0


def test_a_report_that_the_outlook_announces_is_seen_without_a_touch() -> None:
    reports = Reports(10, 40)
    reports.announce(0, 99)
    ranked = scheduler(reports)
    assert [ranked.dispatch(Priority.NORMAL) for _ in range(3)] == [1, 1, 1]  # it has not come yet
    reports.arrive(0)
    assert ranked.dispatch(Priority.NORMAL) == 0


def test_an_announced_report_that_shows_less_is_not_believed_before_it_comes() -> None:
    reports = Reports(60, 40)
    reports.announce(0, 5)
    ranked = scheduler(reports)
    assert ranked.dispatch(Priority.NORMAL) == 0
    reports.arrive(0)
    assert ranked.dispatch(Priority.NORMAL) == 1


def test_instances_far_behind_are_not_read() -> None:
    reports = Reports(*range(100))
    ranked = scheduler(reports)
    for _ in range(50):
        assert ranked.dispatch(Priority.NORMAL) == 99
    assert max(reports.reads[:99]) <= 1


def test_each_class_has_its_own_ranking() -> None:
    reports = Reports(80, 60)
    reports.loads[1] = replace(reports.loads[1], high_priority=1)  # headroom: 100 - 480/16 = 70 blocks
    ranked = scheduler(reports)
    assert ranked.dispatch(Priority.NORMAL) == 0  # 80 against 60 - 70
    assert ranked.dispatch(Priority.HIGH) == 1  # 80 - 70 against 60


# --- migration


def test_a_round_returns_the_pairs_that_can_start() -> None:
    rounds = scheduler(Reports(1, 50, 2, 40))
    assert rounds.migration_round(0) == [Pair(0, 1), Pair(2, 3)]
    rounds.migration_started(Pair(0, 1))
    assert rounds.migration_round(1) == [Pair(2, 3)]
    assert not rounds.may_start(Pair(3, 1))
    assert not rounds.may_start(Pair(0, 2))
    rounds.migration_ended(Pair(0, 1))
    assert rounds.migration_round(2) == [Pair(0, 1), Pair(2, 3)]


def test_busy_instances_keep_their_place_in_the_pairing() -> None:
    reports = Reports(1, 50, 2, 40)
    rounds = scheduler(reports)
    rounds.migration_started(Pair(2, 1))
    assert rounds.migration_round(0) == []  # 0 is paired with 1, 2 with 3, and of each pair one is busy


def test_among_many_instances_a_round_finds_the_pairs_without_a_look_at_those_far_from_being_in_one() -> None:
    reports = Reports(1, 500, *range(200, 400), 2, 450)
    reports.loads[1] = replace(reports.loads[1], preempted=1)  # a source in spite of its freeness, and no destination
    reports.quiet_for = 10.0
    rounds = scheduler(reports)
    pairs = [Pair(0, 203), Pair(202, 201), Pair(1, 200)]
    assert rounds.migration_round(0) == pairs  # everything is new and looked at
    assert rounds.migration_round(1) == pairs
    reports.reads = [0] * len(reports.reads)
    assert rounds.migration_round(2) == pairs
    assert [i for i, reads in enumerate(reports.reads) if reads] == [0, 1, 200, 201, 202, 203]
    reports.free(203, 0)
    rounds.touch(203)
    assert rounds.migration_round(3) == [Pair(203, 201), Pair(0, 200), Pair(202, 199), Pair(1, 198)]


def test_without_persistence_a_source_sends_one_request_a_round() -> None:
    rounds = scheduler(Reports(1, 50))
    [move] = rounds.migration_round(0)
    rounds.migration_started(move)
    assert not rounds.migration_ended(move)


def test_a_persistent_pair_goes_on_until_a_round_parts_it() -> None:
    reports = Reports(1, 50)
    rounds = scheduler(reports, persistent=True)
    [move] = rounds.migration_round(0)
    for _ in range(3):
        rounds.migration_started(move)
        assert rounds.migration_ended(move)
    rounds.migration_started(move)
    reports.free(0, 20)
    assert rounds.migration_round(1) == []
    assert not rounds.migration_ended(move)


def test_a_persistent_pair_rests_until_the_next_round_when_its_destination_has_no_room() -> None:
    rounds = scheduler(Reports(1, 50), persistent=True)
    [move] = rounds.migration_round(0)
    rounds.migration_started(move)
    assert not rounds.migration_ended(move, refused=True)
    assert not rounds.may_go_on(move)
    assert rounds.migration_round(1) == [move]


def test_a_persistent_pair_is_confirmed_by_a_round_in_the_middle_of_its_migration() -> None:
    rounds = scheduler(Reports(1, 50), persistent=True)
    [move] = rounds.migration_round(0)
    rounds.migration_started(move)
    assert rounds.migration_round(1) == []  # it is busy
    assert rounds.migration_ended(move)


def test_a_round_that_pairs_a_source_anew_ends_its_old_pair() -> None:
    reports = Reports(1, 50, 40)
    rounds = scheduler(reports, persistent=True)
    [move] = rounds.migration_round(0)
    assert move == Pair(0, 1)
    rounds.migration_started(move)
    reports.free(1, 30)
    assert rounds.migration_round(1) == []  # 0 goes with 2 now, but it is busy
    assert not rounds.migration_ended(move)


def test_an_instance_with_blocks_to_spare_is_not_read_while_it_cannot_have_lost_them() -> None:
    reports = Reports(20, 90)
    reports.quiet_for = 10.0
    rounds = scheduler(reports)
    assert rounds.migration_round(0.0) == []
    assert reports.asked == [(0, 17.0), (1, 87.0)]  # what is above the threshold, of the whole batch
    reads = list(reports.reads)
    reports.free(0, 1)
    assert rounds.migration_round(9.9) == []
    assert reports.reads == reads
    assert rounds.migration_round(10.0) == [Pair(0, 1)]


@pytest.mark.parametrize(("defragment", "spare"), [(True, 8 * 5 - 3 * 5), (False, 10 * 4 - 3 * 4)])
def test_blocks_to_spare_are_those_of_the_batch_that_freeness_counts(defragment: bool, spare: float) -> None:
    reports = Reports(0)
    reports.loads[0] = replace(EMPTY, running=4, waiting=2, free_blocks=40)
    policy = MigrationPolicy(enabled=True, out_threshold_blocks=3, in_threshold_blocks=3)
    spec = Scheduler(freeness=FreenessRule(defragment=defragment), migration=policy)
    assert GlobalScheduler(spec, [0], reports, never).migration_round(0.0) == []
    assert reports.asked == [(0, pytest.approx(spare))]


def test_a_touch_ends_the_quiet_time() -> None:
    reports = Reports(20, 90)
    reports.quiet_for = math.inf
    rounds = scheduler(reports)
    assert rounds.migration_round(0.0) == []
    reports.free(0, 1)
    rounds.touch(0)
    assert rounds.migration_round(1.0) == [Pair(0, 1)]


@pytest.mark.parametrize("announced_first", [True, False])
def test_an_instance_is_watched_as_long_as_any_load_of_its_outlook_makes_it_a_source(announced_first: bool) -> None:
    reports = Reports(1 if announced_first else 20, 90)
    reports.announce(0, 20 if announced_first else 1)
    reports.quiet_for = math.inf
    rounds = scheduler(reports)
    starts = [rounds.migration_round(0.0)]
    reports.arrive(0)
    starts.append(rounds.migration_round(1.0))
    assert starts == ([[Pair(0, 1)], []] if announced_first else [[], [Pair(0, 1)]])


@pytest.mark.parametrize("persistent", [False, True])
def test_an_idle_instance_gives_nothing_and_takes_first(persistent: bool) -> None:
    reports = Reports(1, 60, 0)
    reports.loads[2] = replace(EMPTY, instance_id=2)
    assert scheduler(reports, persistent=persistent).migration_round(0) == [Pair(0, 2)]


# --- scaling


class Growing(Reports):
    """Reports that instances may join, and whose drains a test carries out."""

    def join(self, free_blocks: int = 100) -> int:
        self.loads.append(replace(EMPTY, instance_id=len(self.loads), running=1, free_blocks=free_blocks))
        self.reads.append(0)
        return len(self.loads) - 1

    def drain(self, instance_id: int, draining: bool = True) -> None:
        self.loads[instance_id] = replace(self.loads[instance_id], draining=draining)


def scaled(
    reports: Growing, *, rule: DispatchRule = DispatchRule.freest, persistent: bool = False, low: float = 10
) -> GlobalScheduler:
    policy = MigrationPolicy(enabled=True, out_threshold_blocks=3, in_threshold_blocks=3, persistent_pairs=persistent)
    scaling = ScalingPolicy(enabled=True, low_blocks=low, width_blocks=20)
    return GlobalScheduler(
        Scheduler(dispatch=rule, migration=policy, scaling=scaling), range(len(reports.loads)), reports, never
    )


def test_instances_that_were_asked_for_are_not_asked_for_again() -> None:
    reports = Growing(2, 4)
    grown = scaled(reports)
    assert grown.scaling_check(0) == ScaleUp(1, 3.0)  # 6 blocks for 2 requests; one empty instance brings 100 more
    assert grown.scaling_check(1) is None
    reports.join(5)
    grown.instance_up(2)
    assert grown.scaling_check(0) == ScaleUp(1, 11 / 3)


def test_a_new_instance_takes_requests_and_a_gone_one_does_not() -> None:
    reports = Growing(10, 40)
    ranked = scaled(reports)
    assert [ranked.dispatch(p) for p in Priority] == [1, 1]
    reports.join(90)
    ranked.instance_up(2)
    assert [ranked.dispatch(p) for p in Priority] == [2, 2]
    ranked = scaled(Growing(90, 80, 95), low=5)
    assert ranked.dispatch(Priority.NORMAL) == 2
    assert ranked.scaling_check(0) == ScaleDown(2, (265 - 100) / 3)
    ranked.touch(2)
    ranked.instance_down(2)
    assert ranked.dispatch(Priority.NORMAL) == 0


def test_a_draining_instance_takes_nothing_and_gives_first() -> None:
    reports = Growing(90, 80, 95)
    drained = scaled(reports)
    assert drained.migration_round(0) == []
    [victim] = [drained.scaling_check(0).instance_id]
    reports.drain(victim)
    drained.touch(victim)
    assert drained.dispatch(Priority.NORMAL) == drained.dispatch(Priority.HIGH) == 0
    assert drained.migration_round(1) == [Pair(2, 0)]


def test_round_robin_skips_what_drains() -> None:
    reports = Growing(90, 80, 95)
    turns = scaled(reports, rule=DispatchRule.round_robin)
    assert turns.scaling_check(0) == ScaleDown(2, (265 - 100) / 3)
    assert [turns.dispatch(Priority.NORMAL) for _ in range(4)] == [0, 1, 0, 1]
    reports.drain(2)
    turns.instance_down(2)
    reports.join()
    turns.instance_up(3)
    assert sorted(turns.dispatch(Priority.NORMAL) for _ in range(3)) == [0, 1, 3]


def test_instances_that_drain_when_the_scheduler_begins_take_nothing_and_may_end() -> None:
    for rule in (DispatchRule.round_robin, DispatchRule.first, DispatchRule.power_of_two, DispatchRule.freest):
        reports = Growing(90, 80, 95)
        reports.drain(0)
        again = GlobalScheduler(Scheduler(dispatch=rule), range(3), reports, lambda: 0.0, draining=[0])
        assert 0 not in [again.dispatch(Priority.NORMAL) for _ in range(6)]
        assert again.may_terminate(0)
        assert not again.may_terminate(1)


def test_a_drain_ends_only_between_migrations_and_not_once_it_is_cancelled() -> None:
    reports = Growing(90, 80, 95)
    drained = scaled(reports)
    assert not drained.may_terminate(2)
    drained.scaling_check(0)
    reports.drain(2)
    assert drained.may_terminate(2)
    drained.migration_started(Pair(2, 0))
    assert not drained.may_terminate(2)
    drained.migration_ended(Pair(2, 0))
    assert drained.may_terminate(2)
    for instance_id in range(3):
        reports.free(instance_id, 4)
    assert drained.scaling_check(0) == CancelDrain(2, 4.0)
    assert not drained.may_terminate(2)


def test_a_persistent_pair_does_not_go_on_into_an_instance_that_drains() -> None:
    reports = Growing(1, 99)
    parted = scaled(reports, persistent=True, low=-100)
    [move] = parted.migration_round(0)
    parted.migration_started(move)
    assert parted.scaling_check(0) == ScaleDown(1, 0.0)
    assert not parted.migration_ended(move)
