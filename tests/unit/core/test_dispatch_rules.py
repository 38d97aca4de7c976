"""The rules of today's routers on loads written by hand: what they value, whom they look at, and how they draw."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_global_scheduler import EMPTY, Reports, never

from llumnix.load import FreenessRule, kv_usage, requests_here
from llumnix.policies.dispatch import DispatchRule, merit, two_of
from llumnix.policies.spec import Scheduler
from llumnix.request import Priority
from llumnix.scheduler import GlobalScheduler

NORMAL = Priority.NORMAL
# 100 blocks of 16 tokens; four run on 60 of them, two wait for 320 tokens = 20 blocks
BUSY = replace(EMPTY, running=4, waiting=2, free_blocks=40, waiting_tokens=320, head_tokens=300)


def loads(*changes: dict[str, int]) -> Reports:
    """Return reports of idle instances with these changes each."""
    reports = Reports(*[100] * len(changes))
    reports.loads = [replace(EMPTY, instance_id=i, **change) for i, change in enumerate(changes)]
    return reports


def scheduler(rule: DispatchRule, reports: Reports, draws: Callable[[], float] = never) -> GlobalScheduler:
    return GlobalScheduler(Scheduler(dispatch=rule), range(len(reports.loads)), reports, draws)


def test_requests_here_are_those_that_run_and_those_that_wait() -> None:
    assert requests_here(BUSY) == 6


def test_kv_usage_counts_what_is_used_and_what_the_queue_wants() -> None:
    assert kv_usage(BUSY) == pytest.approx(0.8)
    assert kv_usage(EMPTY) == 0
    assert kv_usage(replace(BUSY, waiting_tokens=1600)) == pytest.approx(1.6)  # more than there is


def test_least_requests_goes_by_their_number_alone() -> None:
    reports = loads({"running": 3, "free_blocks": 90}, {"running": 1, "waiting": 1, "free_blocks": 2}, {"running": 4})
    assert scheduler(DispatchRule.least_requests, reports).dispatch(NORMAL) == 1


def test_least_requests_counts_the_running_ones() -> None:
    """A rule that looks at queues only would send everything to instance 0."""
    reports = loads({"running": 9}, {"running": 2, "waiting": 1})
    assert scheduler(DispatchRule.least_requests, reports).dispatch(NORMAL) == 1


def test_least_kv_goes_by_memory_and_counts_the_queue() -> None:
    queue = {"running": 1, "waiting": 1, "free_blocks": 90, "waiting_tokens": 800}  # 10 used, 50 wanted
    reports = loads(queue, {"running": 9, "free_blocks": 50}, {"running": 1, "free_blocks": 30})
    assert scheduler(DispatchRule.least_kv, reports).dispatch(NORMAL) == 1


@pytest.mark.parametrize("rule", [DispatchRule.least_requests, DispatchRule.least_kv])
def test_among_equals_the_highest_id_gets_it(rule: DispatchRule) -> None:
    assert scheduler(rule, loads({}, {}, {"running": 1, "free_blocks": 99})).dispatch(NORMAL) == 1


@pytest.mark.parametrize("rule", [DispatchRule.least_requests, DispatchRule.least_kv])
def test_instances_far_behind_are_not_read(rule: DispatchRule) -> None:
    reports = loads(*({"running": 100 - i, "free_blocks": i} for i in range(100)))
    ranked = scheduler(rule, reports)
    for _ in range(50):
        assert ranked.dispatch(NORMAL) == 99
    assert max(reports.reads[:99]) <= 1


@pytest.mark.parametrize("rule", [r for r in DispatchRule if r not in (DispatchRule.round_robin, DispatchRule.first)])
@pytest.mark.parametrize("priority", Priority)
def test_a_draining_instance_is_the_last_resort(rule: DispatchRule, priority: Priority) -> None:
    value = merit(rule, FreenessRule(), priority)
    assert value(replace(EMPTY, draining=True)) == -math.inf
    assert value(replace(BUSY, waiting_tokens=10**6, waiting=10**4)) > -math.inf


@pytest.mark.parametrize("rule", [DispatchRule.least_requests, DispatchRule.least_kv, DispatchRule.power_of_two])
def test_routers_are_blind_to_the_class(rule: DispatchRule) -> None:
    busy = replace(BUSY, high_priority=1)
    assert len({merit(rule, FreenessRule(), priority)(busy) for priority in Priority}) == 1


blocks = st.integers(0, 100)


@given(st.sampled_from(DispatchRule), blocks, blocks, st.integers(0, 9), st.integers(0, 9))
def test_fewer_free_blocks_never_make_an_instance_better(
    rule: DispatchRule, some: int, others: int, running: int, waiting: int
) -> None:
    """What the ranking relies on when it leaves an instance alone that only fills up."""
    load = replace(EMPTY, running=running, waiting=waiting, waiting_tokens=16 * waiting)
    value = merit(rule, FreenessRule(), NORMAL)
    fewer, more = sorted((some, others))
    assert value(replace(load, free_blocks=fewer)) <= value(replace(load, free_blocks=more))


# --- power of two


def drawing(*numbers: float) -> Callable[[], float]:
    return iter(numbers).__next__


def test_of_two_drawn_the_one_with_fewer_requests_gets_it() -> None:
    reports = loads({"running": 5}, {"running": 3}, {"running": 0}, {"running": 4})
    # 0.0 and 0.5: of four the first, of the other three the middle one, instance 2; then 0.99 and 0.4: 3 and 1
    pairs = scheduler(DispatchRule.power_of_two, reports, drawing(0.0, 0.5, 0.99, 0.4))
    assert [pairs.dispatch(NORMAL), pairs.dispatch(NORMAL)] == [2, 1]


def test_it_reads_no_more_than_two() -> None:
    reports = loads({"running": 5}, {"running": 3}, {"running": 0}, {"running": 4})
    scheduler(DispatchRule.power_of_two, reports, drawing(0.0, 0.0)).dispatch(NORMAL)
    assert reports.reads == [1, 1, 0, 0]


def test_of_equals_the_first_drawn_gets_it() -> None:
    reports = loads({}, {}, {})
    pairs = scheduler(DispatchRule.power_of_two, reports, drawing(0.7, 0.0, 0.0, 0.99))
    assert [pairs.dispatch(NORMAL), pairs.dispatch(NORMAL)] == [2, 0]


def test_a_single_instance_gets_everything() -> None:
    assert scheduler(DispatchRule.power_of_two, loads({"running": 7}), drawing(0.9, 0.9)).dispatch(NORMAL) == 0


def test_the_same_draws_choose_the_same_in_whatever_order_instances_are_given() -> None:
    reports = loads(*({"running": n} for n in (4, 1, 3, 2)))
    draws = [0.1, 0.9, 0.6, 0.3, 0.8, 0.0, 0.3, 0.3]
    chosen = []
    for ids in itertools.permutations(range(4)):
        spec = Scheduler(dispatch=DispatchRule.power_of_two)
        pairs = GlobalScheduler(spec, ids, reports, drawing(*draws))
        chosen.append([pairs.dispatch(NORMAL) for _ in range(4)])
    assert chosen.count(chosen[0]) == 24


@pytest.mark.parametrize("rule", [r for r in DispatchRule if r is not DispatchRule.power_of_two])
def test_other_rules_draw_nothing(rule: DispatchRule) -> None:
    scheduler(rule, loads({}, {}), never).dispatch(NORMAL)


@given(st.integers(1, 30), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_two_are_drawn_within_range_and_apart(count: int, first: float, second: float) -> None:
    pair = two_of(count, first, second)
    assert all(0 <= place < count for place in pair)
    assert len(set(pair)) == min(count, 2)


def test_every_pair_is_as_likely_as_any_other() -> None:
    grid = [(i + 0.5) / 60 for i in range(60)]
    pairs = Counter(two_of(5, first, second) for first in grid for second in grid)
    assert len(pairs) == 20
    assert set(pairs.values()) == {60 * 60 // 20}
