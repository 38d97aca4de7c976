"""Instances come and go under load and under faults: no request is lost or doubled, and nothing stays half done."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from fake_engine import FakeEngine
from local import LIMITS, LocalCluster, assert_exact, no_leak, wait_until

from llumnix.cluster.real.front_end import Stream
from llumnix.cluster.real.messages import InstanceLost, NoAnswer
from llumnix.metrics import resource_cost
from llumnix.policies.migration import MigrationPolicy
from llumnix.policies.scaling import ScalingPolicy

MOVES = MigrationPolicy(enabled=True, period_s=0.02, out_threshold_blocks=4.0, in_threshold_blocks=4.0)
UP = ScalingPolicy(
    enabled=True, low_blocks=6, width_blocks=1e6, check_period_s=0.15, first_check_s=0.05, max_instances=4
)
"""More instances as soon as less than 6 blocks are free per request, and never fewer."""
DOWN = replace(UP, low_blocks=-1e6, width_blocks=0, first_check_s=1000)
"""Always one fewer, down to one, from the moment that check() asks."""


def engines(blocks: int = 64, step_s: float = 0.004) -> partial[FakeEngine]:
    return partial(FakeEngine, blocks=blocks, step_s=step_s)


def scaled(instances: int, policy: ScalingPolicy, **options: object) -> LocalCluster:
    options = {"migration": replace(MOVES), "build": lambda _: engines()(), **options}
    return LocalCluster(instances, scaling=replace(policy), **options)  # type: ignore[arg-type]


def events(cluster: LocalCluster, *kinds: str) -> list[tuple[str, int | None]]:
    return [(n.kind, n.instance_id) for n in list(cluster.front_end.notices) if n.kind in kinds]


def check(cluster: LocalCluster) -> None:
    """Let the first check be now."""
    cluster.fleet._check_s = 0.0


def begun(cluster: LocalCluster) -> int:
    """Let a drain begin, wait until its instance says so, and return which one it is."""
    check(cluster)
    wait_until(lambda: any(load.draining for load in cluster.front_end.loads.values()))
    [victim] = cluster.fleet._draining
    return victim


def happened(cluster: LocalCluster, kind: str, instance_id: int | None = None) -> bool:
    return any(k == kind and instance_id in (None, i) for k, i in events(cluster, kind))


def spread(cluster: LocalCluster, *, over: int, each: int = 2, tokens: int = 150) -> list[Stream]:
    """Start `each` requests on each instance."""
    streams = []
    for number in range(over * each):
        cluster.pinned = number % over
        streams.append(cluster.submit(number, tokens=tokens))
        wait_until(lambda: bool(streams[-1].tokens))  # it is there
    cluster.pinned = None
    return streams


def test_instances_come_under_load_and_go_after_it() -> None:
    policy = replace(UP, width_blocks=4)
    with scaled(1, policy, startup_s=0.1) as cluster:
        streams = []
        for number in range(40):
            streams.append(cluster.submit(number, tokens=60))
            time.sleep(0.02)
        for stream in streams:
            assert_exact(stream, 30)
        wait_until(lambda: len(cluster.front_end._instances) == 1, 10)
        later = cluster.submit(50, tokens=20)
        assert_exact(later)
        no_leak(cluster)
        check_events(cluster)
        check_account(cluster)
        assert happened(cluster, "scale_up")
        assert len({s.life.instance_first for s in streams}) > 1
        assert all(link.ended for link in cluster.links if link.instance_id not in cluster.front_end._instances)
        assert set(cluster.control._last) == set(cluster.front_end._instances)


def check_events(cluster: LocalCluster) -> None:
    """Nothing is dispatched where nothing serves, and the bounds hold at every moment."""
    policy = cluster.spec.scaling
    asked: set[int] = set()
    up: set[int] = set()
    draining: set[int] = set()
    for notice in sorted(cluster.front_end.notices, key=lambda n: n.time_s):
        kind, instance = notice.kind, notice.instance_id
        match kind:
            case "scale_up":
                assert instance not in asked
                asked.add(instance)
            case "instance_up":
                up.add(instance)
                asked.add(instance)
            case "drain":
                (draining.add if notice.detail == "begun" else draining.discard)(instance)
            case "instance_down":
                assert instance in draining
                up.discard(instance)
                asked.discard(instance)
                draining.discard(instance)
            case "dispatch":
                assert instance in up
        assert len(draining) <= 1
        assert len(asked) <= policy.max_instances
    assert len(up) >= policy.min_instances


def check_account(cluster: LocalCluster) -> None:
    """The account agrees with the events to a few ticks."""
    sizes = {name: np.asarray(column) for name, column in cluster.fleet.end().items()}
    cost = resource_cost(sizes)
    begun: dict[int, float] = {}
    instance_s = 0.0
    for notice in sorted(cluster.front_end.notices, key=lambda n: n.time_s):
        if notice.kind in ("scale_up", "instance_up"):
            begun.setdefault(notice.instance_id, notice.time_s)
        elif notice.kind == "instance_down":
            instance_s += notice.time_s - begun.pop(notice.instance_id)
    end_s = cluster.fleet._begun_s + sizes["time_s"][-1]
    instance_s += sum(end_s - time_s for time_s in begun.values())
    changes = len(sizes["time_s"])
    assert cost["instance_s"] == pytest.approx(instance_s, abs=0.5 * changes)
    assert cost["instances_max"] > 1
    assert 1 <= cost["instances_step_weighted_mean"] <= cost["instances_max"]
    assert (np.diff(sizes["steps"]) >= 0).all()
    assert sizes["steps"][-1] == cluster.front_end.steps_completed() > 60


def test_a_drained_instance_gives_its_requests_away_and_is_ended() -> None:
    with scaled(2, DOWN) as cluster:
        streams = spread(cluster, over=2)
        check(cluster)
        wait_until(lambda: happened(cluster, "instance_down"))
        assert not all(s.ended.is_set() for s in streams), "it only waited"
        for stream in streams:
            assert_exact(stream, 20)
        assert sum(s.life.migrations for s in streams) > 0
        assert not sum(s.life.replays for s in streams)
        check_events(cluster)
        no_leak(cluster)


def test_without_migration_a_drain_waits_for_the_last_request() -> None:
    with scaled(2, DOWN, migration=MigrationPolicy()) as cluster:
        streams = spread(cluster, over=2, tokens=100)
        victim = begun(cluster)
        wait_until(lambda: happened(cluster, "instance_down"), 20)
        assert all(s.ended.is_set() for s in streams if s.life.instance_last == victim)
        for stream in streams:
            assert_exact(stream, 20)
            assert stream.life.migrations == stream.life.replays == 0


def test_an_instance_is_not_ended_before_its_last_tokens_have_been_heard() -> None:
    limits = replace(LIMITS, control_s=5.0)
    with scaled(2, DOWN, migration=MigrationPolicy(), limits=limits) as cluster:
        streams = spread(cluster, over=2, each=1, tokens=80)
        victim = begun(cluster)
        news = threading.Event()
        cluster.links[victim].before = lambda name: news.wait(2) if name == "poll" else None
        engine = cluster.links[victim].engine
        wait_until(lambda: not engine.running)
        cluster.front_end.loads[victim] = engine.load(victim, draining=True)  # as if by another way
        time.sleep(0.5)
        assert not cluster.links[victim].ended
        assert not streams[victim].ended.is_set()
        news.set()
        for stream in streams:
            assert_exact(stream, 20)
            assert stream.life.replays == 0
        wait_until(lambda: cluster.links[victim].ended)


def test_need_during_a_drain_cancels_it() -> None:
    with scaled(2, DOWN, migration=MigrationPolicy()) as cluster:
        streams = spread(cluster, over=2, tokens=150)
        victim = begun(cluster)
        cluster.spec.scaling.low_blocks = 1e6
        cluster.spec.scaling.max_instances = 2
        wait_until(lambda: not cluster.fleet._draining)
        wait_until(lambda: not cluster.front_end.loads[victim].draining)
        wait_until(lambda: not cluster.control._last[victim].load.draining)
        cluster.pinned = victim
        late = cluster.submit(90, tokens=5)
        for stream in [*streams, late]:
            assert_exact(stream, 20)
        assert late.life.instance_first == victim
        assert not happened(cluster, "instance_down")


@pytest.mark.parametrize("restart_s", [None, 0.02])
def test_an_instance_that_dies_while_it_drains_is_not_waited_for(restart_s: float | None) -> None:
    limits = replace(LIMITS, start_s=30.0)
    policy = replace(DOWN, min_instances=2)
    with scaled(3, policy, migration=MigrationPolicy(), restart_s=restart_s, limits=limits) as cluster:
        streams = spread(cluster, over=3, tokens=200)
        victim = begun(cluster)
        cluster.links[victim].kill()
        for stream in streams:
            assert_exact(stream, 20)
        wait_until(lambda: victim not in cluster.front_end._instances)
        assert cluster.links[victim].ended
        assert {s.life.replays for s in streams} == {0, 1}
        assert set(cluster.front_end._instances) == {0, 1, 2} - {victim}
        wait_until(lambda: set(cluster.control._last) == {0, 1, 2} - {victim})
        assert_exact(cluster.submit(99, tokens=5))


def test_an_instance_that_cannot_start_is_given_up_and_the_next_one_serves() -> None:
    with scaled(1, replace(UP, at_most_per_check=1), startup_s=0.05) as cluster:
        cluster.start_failures[1] = "no device"
        streams = [cluster.submit(n, tokens=100) for n in range(20)]
        wait_until(lambda: happened(cluster, "instance_up", 2))
        wait_until(lambda: happened(cluster, "instance_down", 1))
        for stream in streams:
            assert_exact(stream, 30)
        assert [n.detail for n in cluster.front_end.notices if (n.kind, n.instance_id) == ("instance_down", 1)] == [
            "no device"
        ]
        assert 1 not in cluster.front_end._instances


def test_an_instance_that_is_not_up_in_time_is_given_up() -> None:
    limits = replace(LIMITS, start_s=0.5)
    always = replace(UP, low_blocks=1e6, max_instances=2)  # at the first check: the request is short on a fast machine
    with scaled(1, always, startup_s=60.0, limits=limits) as cluster:
        long = cluster.submit(0, tokens=240, prompt=12)
        wait_until(lambda: happened(cluster, "instance_down", 1))
        assert not cluster.links[1].calls or cluster.links[1].ended
        [reason] = [n.detail for n in cluster.front_end.notices if (n.kind, n.instance_id) == ("instance_down", 1)]
        assert reason == "it was not up after 0.5 s"
        assert_exact(long, 20)


def test_an_instance_that_dies_and_does_not_come_back_is_replaced_where_the_minimum_asks_for_it() -> None:
    limits = replace(LIMITS, start_s=0.5)
    policy = replace(UP, low_blocks=-1e6, min_instances=2)
    with scaled(2, policy, limits=limits) as cluster:
        streams = spread(cluster, over=2)
        cluster.links[1].kill()
        wait_until(lambda: happened(cluster, "instance_up", 2))
        for stream in streams:
            assert_exact(stream, 20)
        assert set(cluster.front_end._instances) == {0, 2}
        assert ("scale_up", 2) in events(cluster, "scale_up")


def test_a_drain_outlives_the_global_scheduler() -> None:
    with scaled(2, DOWN) as cluster:
        cluster.spec.migration.enabled = False  # so that nothing moves before the scheduler dies
        streams = spread(cluster, over=2, tokens=220)
        victim = begun(cluster)
        cluster.kill_scheduler()
        cluster.spec.migration.enabled = True
        bypassing = cluster.submit(80, tokens=5)
        assert_exact(bypassing)
        assert bypassing.life.instance_first != victim
        assert not happened(cluster, "instance_down")
        cluster.restart_scheduler()
        wait_until(lambda: happened(cluster, "instance_down", victim))
        assert not all(s.ended.is_set() for s in streams), "nothing was left to give away"
        for stream in streams:
            assert_exact(stream, 20)
        no_leak(cluster)


@pytest.mark.parametrize("lost", ["question", "answer"])
def test_a_decision_of_which_nobody_hears_leaves_nothing_behind(lost: str) -> None:
    with scaled(2, replace(DOWN, first_check_s=0.3), migration=MigrationPolicy()) as cluster:
        decide = cluster.control.scaling_check
        asked: list[object] = []

        def dies(instance_ids: list[int]) -> object:
            if not asked:
                asked.append(None if lost == "question" else decide(instance_ids))
                raise NoAnswer("lost")
            asked.append(decide(instance_ids))
            return None

        cluster.control.scaling_check = dies  # type: ignore[method-assign, assignment]
        wait_until(lambda: len(asked) > 2)
        time.sleep(0.2)
        assert not cluster.fleet._draining
        wait_until(lambda: not any(last.load.draining for last in cluster.control._last.values()))
        assert not happened(cluster, "drain")
        for number in range(4):
            assert_exact(cluster.submit(number, tokens=5))


def test_a_start_outlives_the_global_scheduler() -> None:
    with scaled(1, UP, startup_s=0.4) as cluster:
        streams = [cluster.submit(n, tokens=150) for n in range(12)]
        wait_until(lambda: happened(cluster, "scale_up"))
        cluster.kill_scheduler()
        wait_until(lambda: happened(cluster, "instance_up", 1))
        cluster.restart_scheduler()
        wait_until(lambda: 1 in cluster.control._last)
        late = [cluster.submit(n, tokens=20) for n in range(50, 60)]
        for stream in [*streams, *late]:
            assert_exact(stream, 30)
        assert Counter(s.life.instance_first for s in late).keys() - {0}
        check_events(cluster)


def test_a_drain_order_that_does_not_arrive_is_given_again() -> None:
    with scaled(2, DOWN) as cluster:
        lost: list[int] = []

        def lose(link: int, name: str) -> None:
            if name == "set_draining" and len(lost) < 3:
                lost.append(link)
                raise NoAnswer("lost")

        for link in cluster.links:
            link.before = partial(lose, link.instance_id)
        streams = spread(cluster, over=2)
        check(cluster)
        wait_until(lambda: happened(cluster, "instance_down"))
        assert len(lost) == 3
        for stream in streams:
            assert_exact(stream, 20)


def test_an_instance_nobody_listens_to_gets_nothing() -> None:
    with scaled(1, UP) as cluster:
        cluster.front_end.add = lambda instance: None  # type: ignore[method-assign]
        streams = [cluster.submit(n, tokens=60) for n in range(12)]
        wait_until(lambda: happened(cluster, "scale_up"))
        wait_until(lambda: len(cluster.links) > 1 and not cluster.links[1].dead)
        time.sleep(0.2)
        assert set(cluster.control._last) == {0}
        for stream in streams:
            assert_exact(stream, 30)
            assert stream.life.instance_first == 0


def test_the_link_says_lost_what_has_been_ended() -> None:
    with scaled(2, DOWN) as cluster:
        check(cluster)
        wait_until(lambda: happened(cluster, "instance_down"))
        [(_, gone)] = events(cluster, "instance_down")
        with pytest.raises(InstanceLost):
            cluster.links[gone].is_empty()
        cluster.pinned = gone  # a scheduler that is behind
        stream = cluster.submit(0, tokens=5)
        assert_exact(stream)
        assert stream.life.instance_first != gone
