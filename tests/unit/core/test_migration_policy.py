"""Which instances are paired and which request leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.errors import ConfigError
from llumnix.load import FreenessRule, InstanceLoad, migration_freeness
from llumnix.policies.migration import (
    HighPriorityMoves,
    MigrationPolicy,
    Pair,
    RequestChoice,
    choose_request,
    is_source,
    pair,
)
from llumnix.request import Priority

RULE = FreenessRule(priorities=False)


def load(instance_id: int, freeness: int, *, preempted: int = 0, running: int = 1) -> InstanceLoad:
    """Return a load of the given freeness; running=0: idle."""
    free_blocks = 1000 + freeness * max(running, 1)  # watermark 1000: freeness may be negative
    return InstanceLoad(instance_id, running, 0, preempted, 0, free_blocks, 2000, 1000, 16, 0, 0)


POLICY = MigrationPolicy(enabled=True, out_threshold_blocks=3, in_threshold_blocks=5)


def test_the_least_free_source_goes_to_the_freest_destination() -> None:
    loads = [load(0, 1), load(1, 9), load(2, -4), load(3, 30), load(4, 2)]
    assert pair(loads, POLICY, RULE) == [Pair(2, 3), Pair(0, 1)]


def test_thresholds_themselves_are_neither_source_nor_destination() -> None:
    assert pair([load(0, 3), load(1, 100)], POLICY, RULE) == []
    assert pair([load(0, 2), load(1, 5)], POLICY, RULE) == []
    assert pair([load(0, 2), load(1, 6)], POLICY, RULE) == [Pair(0, 1)]


def test_an_idle_instance_is_the_first_destination() -> None:
    loads = [load(0, 2), load(1, 900), load(2, 0, running=0)]
    assert pair(loads, POLICY, RULE) == [Pair(0, 2)]


def test_a_preempted_request_makes_a_source_of_a_free_instance_in_the_released_reading() -> None:
    loads = [load(0, 50, preempted=1), load(1, 40), load(2, 1)]
    assert pair(loads, POLICY, RULE) == [Pair(2, 1)]  # both are sources, the less free one comes first
    assert pair(loads[:2], POLICY, RULE) == [Pair(0, 1)]
    paper = MigrationPolicy(out_threshold_blocks=3, in_threshold_blocks=5, preempted_is_source=False)
    assert pair(loads, paper, RULE) == [Pair(2, 0)]
    assert pair(loads[:2], paper, RULE) == []


def test_equals_are_ordered_by_instance_id() -> None:
    loads = [load(3, 9), load(1, 1), load(0, 1), load(2, 9)]
    assert pair(loads, POLICY, RULE) == [Pair(0, 2), Pair(1, 3)]


@given(
    st.lists(st.tuples(st.integers(-5, 12), st.integers(0, 1), st.integers(0, 2)), max_size=9),
    st.randoms(use_true_random=False),
)
def test_pairs_do_not_depend_on_the_order_of_the_instances(rows: list[tuple[int, int, int]], random: object) -> None:
    loads = [load(i, f, preempted=p, running=r) for i, (f, p, r) in enumerate(rows)]
    pairs = pair(loads, POLICY, RULE)
    shuffled = list(loads)
    random.shuffle(shuffled)
    assert pair(shuffled, POLICY, RULE) == pairs
    used = [side for p in pairs for side in (p.source, p.destination)]
    assert len(set(used)) == len(used)
    freeness = {x.instance_id: migration_freeness(x, RULE) for x in loads}
    for p in pairs:
        assert is_source(loads[p.source], freeness[p.source], POLICY)
        assert freeness[p.destination] > POLICY.in_threshold_blocks
        assert not loads[p.destination].preempted


@dataclass(frozen=True)
class Running:
    arrival_order: int
    context_tokens: int
    priority: Priority = Priority.NORMAL


OLD_LONG, MIDDLE_SHORT, YOUNG_MIDDLE = Running(1, 900), Running(2, 10), Running(3, 300)


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        (RequestChoice.youngest, YOUNG_MIDDLE),
        (RequestChoice.shortest, MIDDLE_SHORT),
        (RequestChoice.longest, OLD_LONG),
    ],
)
def test_the_rule_chooses_the_request(rule: RequestChoice, chosen: Running) -> None:
    running = [YOUNG_MIDDLE, OLD_LONG, MIDDLE_SHORT]
    policy = MigrationPolicy(request_choice=rule)
    assert choose_request(running, policy, load(0, 9)) is chosen
    assert choose_request(running[::-1], policy, load(0, 9)) is chosen


requests = st.builds(Running, st.integers(0, 30), st.integers(1, 9), st.sampled_from(Priority))
policies = st.builds(
    MigrationPolicy, request_choice=st.sampled_from(RequestChoice), high_priority=st.sampled_from(HighPriorityMoves)
)


@given(st.lists(requests, unique_by=lambda r: r.arrival_order), policies, st.integers(-5, 12), st.booleans())
def test_a_high_priority_request_leaves_before_a_normal_one_only_where_the_policy_says_so(
    running: list[Running], policy: MigrationPolicy, freeness: int, draining: bool
) -> None:
    here = replace(load(0, freeness), draining=draining)
    chosen = choose_request(running, policy, here)
    short = freeness < policy.out_threshold_blocks and policy.high_priority is HighPriorityMoves.to_relieve
    normal = [r for r in running if r.priority is Priority.NORMAL]
    released = policy.high_priority is HighPriorityMoves.beside_normal
    if policy.high_priority is HighPriorityMoves.like_any or (released and normal):
        blind = [Running(r.arrival_order, r.context_tokens) for r in running]
        expected = choose_request(blind, policy, here)
        assert (chosen and chosen.arrival_order) == (expected and expected.arrival_order)
    elif normal:
        assert chosen is choose_request(normal, policy, here) is not None
    elif draining or short or policy.high_priority is HighPriorityMoves.last:
        assert (chosen is None) == (not running)
    else:
        assert chosen is None


def test_headroom_alone_moves_no_high_priority_request_but_want_of_memory_does() -> None:
    high, policy = Running(1, 300, Priority.HIGH), MigrationPolicy()
    roomy = replace(load(0, 200), high_priority=1)
    assert is_source(roomy, migration_freeness(roomy, FreenessRule()), policy)  # its headroom makes it one
    assert choose_request([high], policy, roomy) is None
    full = replace(load(0, 2), high_priority=1)
    assert choose_request([high], policy, full) is high
    assert choose_request([high], policy, replace(roomy, waiting=1, waiting_tokens=16 * 400)) is high
    assert choose_request([high], MigrationPolicy(high_priority=HighPriorityMoves.to_drain), full) is None


@pytest.mark.parametrize("rule", RequestChoice)
def test_among_requests_of_one_length_the_youngest_leaves(rule: RequestChoice) -> None:
    running = [Running(1, 7), Running(4, 7), Running(2, 7)]
    assert choose_request(running, MigrationPolicy(request_choice=rule), load(0, 9)) is running[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"period_s": 0.0}, r"period_s must be positive, got 0\.0"),
        ({"period_s": -1.0}, r"period_s must be positive, got -1\.0"),
        ({"period_s": math.nan}, r"period_s must be positive, got nan"),
        ({"period_s": math.inf}, r"period_s must be positive, got inf"),
        ({"max_stages": 0}, r"max_stages must be at least 1, got 0"),
        ({"last_stage_max_blocks": -1}, r"last_stage_max_blocks must not be negative, got -1"),
        (
            {"out_threshold_blocks": 4.0, "in_threshold_blocks": 3.0},
            r"must not exceed in_threshold_blocks, got 4.0 > 3",
        ),
        ({"out_threshold_blocks": math.nan}, r"must not exceed in_threshold_blocks, got nan"),
    ],
)
def test_a_wrong_policy_is_refused_by_name_and_value(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MigrationPolicy(**wrong)
