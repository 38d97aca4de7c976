"""The global scheduler in wall-clock time: reports in, pairs out, instances that come, go and fall silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llumnix.cluster.real.control import Control, NoInstance
from llumnix.load import InstanceLoad
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.migration import MigrationPolicy, Pair
from llumnix.policies.scaling import ScaleDown, ScaleUp, ScalingPolicy
from llumnix.policies.spec import LoadReports, Scheduler
from llumnix.request import Priority


def load(instance_id: int, free: int, running: int = 2) -> InstanceLoad:
    return InstanceLoad(instance_id, running, 0, 0, 0, free, 100, 0, 16, 0, 0)


class World:
    """A control with a clock that is set by hand, and migrations that end when told."""

    def __init__(self, **policy: object) -> None:
        self.now_s = 0.0
        self.started: list[tuple[Pair, Callable[[bool], None]]] = []
        spec = Scheduler(migration=MigrationPolicy(enabled=True, **policy))  # type: ignore[arg-type]
        self.control = Control(spec, self._start, report_limit_s=5.0, clock=lambda: self.now_s)

    def _start(self, pair: Pair, ended: Callable[[bool], None]) -> None:
        self.started.append((pair, ended))


def test_nothing_is_dispatched_before_an_instance_has_reported() -> None:
    with pytest.raises(NoInstance):
        World().control.dispatch(Priority.NORMAL)


def test_requests_go_to_the_freest_of_the_last_reports() -> None:
    control = World().control
    control.report(load(0, 50))
    control.report(load(1, 20))
    assert control.dispatch(Priority.NORMAL) == 0
    control.report(load(0, 10))
    assert control.dispatch(Priority.NORMAL) == 1


def test_a_router_counts_what_it_has_sent_before_the_instances_tell() -> None:
    spec = Scheduler(dispatch=DispatchRule.least_requests, load_reports=LoadReports.immediate)
    control = Control(spec, lambda pair, ended: None)
    for instance_id, running in enumerate((1, 2, 4)):
        control.report(load(instance_id, 50, running))
    assert [control.dispatch(Priority.NORMAL) for _ in range(5)] == [0, 1, 0, 1, 0]  # 1, 2, 2, 3, 3 of its own
    control.report(load(0, 50, 0))
    assert control.dispatch(Priority.NORMAL) == 0


def test_stale_reports_are_all_that_the_released_scheduler_sees() -> None:
    control = Control(Scheduler(dispatch=DispatchRule.least_requests), lambda pair, ended: None)
    control.report(load(0, 50, 1))
    control.report(load(1, 50, 2))
    assert [control.dispatch(Priority.NORMAL) for _ in range(4)] == [0, 0, 0, 0]


def test_two_choices_stay_within_the_instances_that_report() -> None:
    draws = iter([0.0, 0.9, 0.9, 0.0])
    spec = Scheduler(dispatch=DispatchRule.power_of_two)
    control = Control(spec, lambda pair, ended: None, uniform=draws.__next__)
    for instance_id in (0, 1, 2):
        control.report(load(instance_id, 50, instance_id + 1))
    assert control.dispatch(Priority.NORMAL) == 0  # of 0 and 2
    control.instance_down(0)
    assert control.dispatch(Priority.NORMAL) == 1  # of 2 and 1


def test_an_instance_that_is_down_or_silent_gets_nothing_until_it_reports() -> None:
    world = World()
    world.control.report(load(0, 50))
    world.control.report(load(1, 20))
    world.control.instance_down(0)
    assert world.control.dispatch(Priority.NORMAL) == 1
    world.control.report(load(0, 50))
    assert world.control.dispatch(Priority.NORMAL) == 0
    world.now_s = 4.0
    world.control.report(load(1, 20))
    world.now_s = 6.0
    assert world.control.dispatch(Priority.NORMAL) == 1


def test_a_pair_is_busy_until_its_migration_has_ended_also_across_a_restart_of_an_instance() -> None:
    world = World()
    world.control.report(load(0, 0))
    world.control.report(load(1, 90))
    world.control.round()
    world.control.round()
    assert [pair for pair, _ in world.started] == [Pair(0, 1)]
    world.control.report(load(2, 40))
    world.control.round()
    assert len(world.started) == 1
    world.started[0][1](True)
    world.control.round()
    assert [pair for pair, _ in world.started] == [Pair(0, 1)] * 2


@pytest.mark.parametrize(("moved", "starts"), [(True, 2), (False, 1)])
def test_a_persistent_pair_goes_on_only_if_something_moved(moved: bool, starts: int) -> None:
    world = World(persistent_pairs=True)
    world.control.report(load(0, 0))
    world.control.report(load(1, 90))
    world.control.round()
    world.started[0][1](moved)
    assert len(world.started) == starts


# --- scaling


def scaled(**policy: object) -> Control:
    scaling = ScalingPolicy(enabled=True, **policy)  # type: ignore[arg-type]
    return Control(Scheduler(scaling=scaling), lambda pair, ended: None, clock=lambda: 0.0)


def test_instances_that_have_not_reported_count_as_starting() -> None:
    control = scaled(low_blocks=10, max_instances=8)
    assert control.scaling_check([0, 1]) is None  # nobody has: a scheduler that has just been restarted
    control.report(load(0, 10))
    assert control.scaling_check([0, 1, 2]) is None  # two empty ones are to come
    assert control.scaling_check([0]) == ScaleUp(1, 5.0)
    assert control.scaling_check([0]) == ScaleUp(1, 5.0), "what was decided and not done is decided again"


def test_a_drain_is_known_by_reports_alone_once_they_have_come() -> None:
    control = scaled(low_blocks=0, width_blocks=0)
    for instance_id in (0, 1):
        control.report(load(instance_id, 90, running=1 + instance_id))
    assert control.scaling_check([0, 1]) == ScaleDown(0, (180 - 100) / 3)
    assert control.dispatch(Priority.HIGH) == control.dispatch(Priority.NORMAL) == 1
    assert control.may_terminate(0)
    control.report(load(0, 90, running=1))  # it was not told
    assert not control.may_terminate(0)
    assert control.dispatch(Priority.NORMAL) == 0
    control.report(replace(load(0, 90, running=1), draining=True))
    assert control.may_terminate(0)
    again = scaled()
    for report in (replace(load(0, 90, running=1), draining=True), load(1, 20)):
        again.report(report)
    assert again.may_terminate(0)
    assert not again.may_terminate(1)
    assert again.dispatch(Priority.NORMAL) == 1


@pytest.mark.parametrize("rule", DispatchRule)
def test_nothing_is_dispatched_where_all_that_are_known_drain(rule: DispatchRule) -> None:
    control = Control(Scheduler(dispatch=rule), lambda pair, ended: None)
    control.report(replace(load(0, 90), draining=True))
    with pytest.raises(NoInstance):
        control.dispatch(Priority.NORMAL)


def test_an_instance_that_was_ended_is_forgotten_whatever_it_still_said() -> None:
    control = scaled(low_blocks=-1e6, width_blocks=1e9)
    for instance_id in (0, 1):
        control.report(load(instance_id, 50))
    control.instance_down(1)
    control.report(load(1, 90))  # was under way
    assert control.dispatch(Priority.NORMAL) == 1
    control.scaling_check([0])
    assert control.dispatch(Priority.NORMAL) == 0
