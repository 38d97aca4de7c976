"""When instances come and go: bounds of the average freeness, worked out by hand and held for any load."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.errors import ConfigError
from llumnix.load import FreenessRule, InstanceLoad, QueueDemand, dispatch_freeness, pooled
from llumnix.policies.scaling import CancelDrain, ScaleDown, ScaleUp, ScalingPolicy, Victim, decide

RULE = FreenessRule()
POLICY = ScalingPolicy(enabled=True, low_blocks=10, width_blocks=50, min_instances=2, max_instances=6)


def load(instance_id: int, running: int, free_blocks: int, **more: int) -> InstanceLoad:
    """Return a report of an instance of 102 blocks, 2 of them below the watermark."""
    loaded = InstanceLoad(instance_id, running, 0, 0, 0, free_blocks, 102, 2, 16, 0, 0)
    return replace(loaded, **more)


def test_between_the_bounds_nothing_happens() -> None:
    assert decide([load(0, 4, 42), load(1, 4, 42), load(2, 2, 42)], 0, POLICY, RULE) is None  # 12


def test_the_bounds_themselves_are_inside() -> None:
    assert decide([load(0, 2, 22), load(1, 2, 22), load(2, 1, 12)], 0, POLICY, RULE) is None  # 50 blocks, 5 requests
    above = [load(0, 1, 102), load(1, 1, 102), load(2, 0, 22)]
    assert decide(above, 0, POLICY, RULE) is None  # 220 - 100 for 2 requests
    assert decide([*above[:2], load(2, 0, 23)], 0, POLICY, RULE) == ScaleDown(2, 60.5)


def test_below_the_lower_bound_as_many_start_as_bring_the_average_there() -> None:
    loads = [load(0, 16, 12), load(1, 16, 14)]  # 22 blocks for 32 requests; 322 are needed, an empty one has 100
    assert decide(loads, 0, POLICY, RULE) == ScaleUp(3, 22 / 32)
    assert decide(loads, 1, POLICY, RULE) == ScaleUp(2, 122 / 32)
    assert decide(loads, 3, POLICY, RULE) is None
    assert decide(loads, 0, replace(POLICY, max_instances=4), RULE) == ScaleUp(2, 22 / 32)
    assert decide(loads, 1, replace(POLICY, max_instances=3), RULE) is None
    assert decide(loads, 0, replace(POLICY, at_most_per_check=1), RULE) == ScaleUp(1, 22 / 32)


def test_the_queue_counts_as_it_does_for_dispatch() -> None:
    loads = [load(0, 4, 92, waiting=4, waiting_tokens=160, head_tokens=32), load(1, 2, 22)]
    assert dispatch_freeness(pooled(loads, RULE), RULE) == (110 - 10) / 10
    assert decide(loads, 0, POLICY, RULE) is None
    queued = [replace(loads[0], waiting=5), loads[1]]
    assert decide(queued, 0, POLICY, RULE) == ScaleUp(1, 100 / 11)
    assert decide(queued, 0, POLICY, FreenessRule(queue_demand=QueueDemand.head_of_line)) is None


@pytest.mark.parametrize(("rule", "victim"), [(Victim.fewest_running, 1), (Victim.last, 3)])
def test_above_the_upper_bound_one_is_drained(rule: Victim, victim: int) -> None:
    loads = [load(0, 1, 102), load(3, 1, 101), load(1, 0, 102), load(2, 1, 89)]
    policy = replace(POLICY, victim=rule)
    assert decide(loads, 0, policy, RULE) == ScaleDown(victim, (386 - 100) / 3)
    assert decide(loads[:2], 0, policy, RULE) is None  # at the minimum


def test_of_equally_idle_instances_the_one_that_came_last_goes() -> None:
    decision = decide([load(i, 0, 102) for i in (1, 2, 0)], 0, POLICY, RULE)
    assert decision == ScaleDown(2, math.inf)


def test_one_drain_at_a_time_and_none_while_instances_start() -> None:
    idle = [load(i, 0, 102) for i in range(4)]
    assert decide(idle, 1, POLICY, RULE) is None
    assert decide([*idle[:3], replace(idle[3], draining=True)], 0, POLICY, RULE) is None


def test_need_during_a_drain_cancels_it_before_anything_starts() -> None:
    loads = [load(0, 16, 12), load(1, 16, 14, draining=True), load(2, 8, 2)]
    assert decide(loads, 0, POLICY, RULE) == CancelDrain(1, 22 / 40)


def test_headroom_of_high_priority_requests_is_not_free() -> None:
    rule = FreenessRule(headroom_target_tokens=800)
    loads = [load(0, 2, 62), load(1, 3, 42)]
    assert decide(loads, 0, POLICY, rule) is None
    loads[0] = replace(loads[0], high_priority=1)  # of 102 blocks 52 are kept for it
    assert decide(loads, 0, POLICY, rule) == ScaleUp(1, 48 / 5)
    assert decide(loads, 0, POLICY, replace(rule, priorities=False)) is None


loads_of_clusters = st.lists(
    st.builds(
        lambda running, waiting, free, tokens, draining: (running, waiting, free, tokens if waiting else 0, draining),
        st.integers(0, 9), st.integers(0, 3), st.integers(0, 102), st.integers(1, 900), st.booleans(),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@given(
    loads_of_clusters,
    st.integers(0, 3),
    st.sampled_from([-5.0, 0.0, 10.0, 80.0]),
    st.sampled_from([0.0, 50.0]),
    st.sampled_from(Victim),
    st.sampled_from([None, 1, 2]),
    st.randoms(use_true_random=False),
)
def test_any_decision_is_within_its_rights(
    rows: list[tuple[int, int, int, int, bool]],
    starting: int,
    low: float,
    width: float,
    victim: Victim,
    most: int | None,
    random: object,
) -> None:
    drains = [i for i, row in enumerate(rows) if row[4]][:1]
    loads = [
        load(i, running, free, waiting=waiting, waiting_tokens=tokens, head_tokens=tokens, draining=i in drains)
        for i, (running, waiting, free, tokens, _) in enumerate(rows)
    ]
    policy = ScalingPolicy(
        low_blocks=low, width_blocks=width, min_instances=2, max_instances=9, at_most_per_check=most, victim=victim
    )
    decision = decide(loads, starting, policy, RULE)
    shuffled = list(loads)
    random.shuffle(shuffled)
    assert decide(shuffled, starting, policy, RULE) == decision, "the order of the instances does not matter"
    both = pooled(loads, RULE)

    def average(more: int) -> float:
        return dispatch_freeness(replace(both, free_blocks=both.free_blocks + 100 * (starting + more)), RULE)

    match decision:
        case ScaleUp(instances, freeness):
            assert not drains
            assert freeness == average(0) < low
            assert average(instances - 1) < low, "one fewer would not have been enough"
            assert average(instances) >= low or len(loads) + starting + instances == 9 or instances == most
            assert len(loads) + starting + instances <= 9
        case CancelDrain(instance_id, freeness):
            assert [instance_id] == drains
            assert freeness == average(0) < low
        case ScaleDown(instance_id, freeness):
            assert not drains
            assert not starting
            assert len(loads) > 2
            assert freeness > low + width
            fewest = min(x.running for x in loads)
            assert victim is Victim.last or loads[instance_id].running == fewest
            assert victim is Victim.fewest_running or instance_id == len(loads) - 1
        case None:
            full = len(loads) + starting >= 9 and not drains
            assert average(0) >= low or full


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"low_blocks": math.nan}, "low_blocks must be a number, got nan"),
        ({"width_blocks": -1.0}, r"width_blocks must not be negative, got -1\.0"),
        ({"startup_s": -0.1}, r"startup_s must not be negative, got -0\.1"),
        ({"check_period_s": 0.0}, r"check_period_s must be positive, got 0\.0"),
        ({"first_check_s": math.inf}, "first_check_s must be positive, got inf"),
        ({"min_instances": 0}, "min_instances must be at least 1 and at most max_instances, got 0 and 16"),
        ({"min_instances": 5, "max_instances": 4}, "got 5 and 4"),
        ({"at_most_per_check": 0}, r"at_most_per_check must be at least 1 \(or null\), got 0"),
    ],
)
def test_a_wrong_policy_is_refused_by_name_and_value(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScalingPolicy(**wrong)
