"""Migration, cancellation and faults on a cluster of fake engines: every request ends with exactly its tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import pytest
from fake_engine import FakeEngine
from local import LocalCluster, assert_exact, wait_until

from llumnix.cluster.real.front_end import Stream
from llumnix.cluster.real.messages import NoAnswer
from llumnix.cluster.real.spec import OnLoss
from llumnix.policies.migration import MigrationMethod, MigrationPolicy

MESSAGES = ["reserve", "receive", "extend", "land"]


def no_leak(cluster: LocalCluster) -> None:
    """Nothing runs, waits or arrives anywhere, and every block is free."""

    def clean() -> bool:
        engines = [link.engine for link in cluster.links if not link.dead]
        return all(not e.running and not e.waiting and not e.arriving and len(e.free) == e.total for e in engines)

    wait_until(clean)


def start_one(cluster: LocalCluster, tokens: int = 120) -> tuple[Stream, int]:
    stream = cluster.submit(0, tokens=tokens, prompt=30)
    wait_until(lambda: len(stream.tokens) >= 5)
    source = stream.life.instance_last
    assert source is not None
    return stream, source


def one_after_the_other(cluster: LocalCluster, numbers: Iterable[int], tokens: int) -> list[Stream]:
    """Submit so that each report tells of the request before: they spread over the instances."""
    streams = []
    for number in numbers:
        streams.append(cluster.submit(number, tokens=tokens))
        wait_until(lambda: len(streams[-1].tokens) > 3)
        time.sleep(0.01)
    return streams


def test_requests_that_stay_give_their_tokens() -> None:
    with LocalCluster(2) as cluster:
        streams = [cluster.submit(n, tokens=20) for n in range(20)]
        for stream in streams:
            assert_exact(stream)
        no_leak(cluster)


def test_a_moved_request_gives_the_same_tokens() -> None:
    with LocalCluster(2) as cluster:
        stream, source = start_one(cluster)
        outcome = cluster.links[source].move("r0", 1 - source)
        assert outcome.moved, outcome
        assert outcome.stages >= 2
        assert_exact(stream)
        assert stream.life.migrations == 1
        assert stream.life.instance_last == 1 - source
        no_leak(cluster)


def test_a_request_moved_by_recompute_gives_the_same_tokens_and_copies_no_block() -> None:
    policy = MigrationPolicy(method=MigrationMethod.recompute)
    with LocalCluster(2) as cluster:
        stream, source = start_one(cluster)
        outcome = cluster.links[source].move("r0", 1 - source, policy)
        assert outcome.moved, outcome
        assert outcome.copied_blocks == 0
        assert "receive" not in cluster.links[1 - source].calls
        assert_exact(stream)
        assert stream.life.instance_last == 1 - source
        step_s = cluster.links[1 - source].engine.step_s
        assert stream.life.migration_downtime_s > outcome.downtime_s + step_s / 2  # until its next token
        no_leak(cluster)


def test_a_move_counts_although_its_source_hears_of_it_after_the_last_token() -> None:
    with LocalCluster(2) as cluster:
        stream, source = start_one(cluster)
        cluster.links[1 - source].after = lambda name: time.sleep(0.5) if name == "land" else None
        assert cluster.links[source].move("r0", 1 - source).moved
        assert stream.ended.is_set()
        wait_until(lambda: stream.life.migrations == 1)
        assert_exact(stream)


def test_back_and_forth_under_load() -> None:
    with LocalCluster(2, build=lambda _: FakeEngine(blocks=512)) as cluster:
        streams = [cluster.submit(n, tokens=300, prompt=5 + n) for n in range(8)]
        wait_until(lambda: all(s.tokens for s in streams))
        moved = 0
        for turn in range(40):
            stream = streams[turn % 8]
            source = stream.life.instance_last
            if (
                not stream.ended.is_set()
                and cluster.links[source].move(stream.life.request.request_id, 1 - source).moved
            ):
                moved += 1
        assert moved >= 10
        for stream in streams:
            assert_exact(stream, 20)
        no_leak(cluster)


def test_a_wrong_block_would_be_noticed() -> None:
    with LocalCluster(2) as cluster:
        stream, source = start_one(cluster)
        cluster.links[1 - source].engine.corrupt_writes = True
        assert cluster.links[source].move("r0", 1 - source).moved
        with pytest.raises(AssertionError):
            assert_exact(stream)


def test_the_scheduler_moves_requests_away_from_a_full_instance() -> None:
    policy = MigrationPolicy(enabled=True, period_s=0.02, out_threshold_blocks=4.0, in_threshold_blocks=4.0)
    with LocalCluster(3, build=lambda _: FakeEngine(blocks=48), migration=policy) as cluster:
        streams = [cluster.submit(n, tokens=100, prompt=12) for n in range(12)]
        for stream in streams:
            assert_exact(stream, 30)
        assert sum(stream.life.migrations for stream in streams) > 0
        no_leak(cluster)


def test_draining_gives_everything_away_and_takes_nothing() -> None:
    policy = MigrationPolicy(enabled=True, period_s=0.01)
    with LocalCluster(2, build=lambda _: FakeEngine(blocks=256, step_s=0.005), migration=policy) as cluster:
        streams = [cluster.submit(n, tokens=200) for n in range(6)]
        wait_until(lambda: all(s.tokens for s in streams))
        cluster.links[0].set_draining(True)
        wait_until(lambda: not cluster.links[0].engine.running and not cluster.links[0].engine.waiting)
        assert not all(s.ended.is_set() for s in streams)
        late = cluster.submit(99, tokens=5)
        for stream in [*streams, late]:
            assert_exact(stream)
        assert late.life.instance_first == 1


def test_what_cannot_move_is_refused_with_its_reason_and_stays() -> None:
    with LocalCluster(2) as cluster:
        stream = cluster.submit(0, tokens=60, refuse="it uses a LoRA adapter")
        wait_until(lambda: len(stream.tokens) > 2)
        source = stream.life.instance_last
        outcome = cluster.links[source].move("r0", 1 - source)
        assert (outcome.moved, outcome.reason) == (False, "it uses a LoRA adapter")
        assert_exact(stream)
        assert stream.life.instance_last == source


@pytest.mark.parametrize("at", ["reserve", "extend"])
def test_a_destination_without_room_leaves_the_request_where_it_is(at: str) -> None:
    with LocalCluster(2) as cluster:
        stream, source = start_one(cluster)
        engine = cluster.links[1 - source].engine
        if at == "reserve":
            engine.refuse_reason = "there is no room"
        else:
            engine.refuse_extend = True
        outcome = cluster.links[source].move("r0", 1 - source)
        assert not outcome.moved
        assert "no_memory" in outcome.reason
        assert_exact(stream)
        assert stream.life.instance_last == source
        no_leak(cluster)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("victim", ["source", "destination"])
def test_an_instance_dies_at_every_step_of_a_migration(victim: str, message: str, when: str) -> None:
    with LocalCluster(3, build=lambda _: FakeEngine(blocks=128)) as cluster:
        others = [cluster.submit(n, tokens=100) for n in range(1, 7)]
        stream, source = start_one(cluster)
        destination = (source + 1) % 3
        link = cluster.links[destination]
        killed = cluster.links[source] if victim == "source" else link

        def fault(name: str) -> None:
            if name == message and not killed.dead:
                killed.kill()
                if victim == "destination" and when == "before":
                    raise NoAnswer("it died")
                if victim == "source":
                    raise SystemExit  # the source's own thread goes down with it

        setattr(link, when, fault)
        try:
            cluster.links[source].move("r0", destination)
        except BaseException as error:
            if isinstance(error, AssertionError):
                raise
        reached = killed.dead
        assert reached or message == "extend"  # a short request may need no second reservation
        for one in [stream, *others]:
            assert_exact(one, 15)
        if reached:
            killed.restart()
            wait_until(lambda: killed.instance_id not in cluster.front_end._down)
        no_leak(cluster)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_gets_lost_costs_no_token(message: str, when: str) -> None:
    with LocalCluster(2) as cluster:
        stream, source = start_one(cluster)

        def lose(name: str) -> None:
            if name == message:
                raise NoAnswer("lost")

        setattr(cluster.links[1 - source], when, lose)
        cluster.links[source].move("r0", 1 - source)
        assert_exact(stream)
        no_leak(cluster)


def test_requests_of_a_dead_instance_go_on_elsewhere_from_what_was_delivered() -> None:
    with LocalCluster(2, build=lambda _: FakeEngine(blocks=1024)) as cluster:
        streams = one_after_the_other(cluster, range(6), tokens=300)
        cluster.links[0].kill()
        for stream in streams:
            assert_exact(stream)
        assert any(s.life.replays for s in streams)
        assert any(not s.life.replays for s in streams)
        cluster.links[0].restart()
        wait_until(lambda: not cluster.front_end._down)
        again = one_after_the_other(cluster, range(10, 16), tokens=300)
        for stream in again:
            assert_exact(stream)
        assert {s.life.instance_first for s in again} == {0, 1}


def test_requests_of_a_dead_instance_fail_with_a_reason_if_so_configured() -> None:
    with LocalCluster(2, on_loss=OnLoss.fail) as cluster:
        stream, source = start_one(cluster)
        cluster.links[source].kill()
        assert stream.wait(5)
        assert stream.life.error == f"instance {source} was lost"
        assert list(stream)  # what was delivered stays delivered


def test_an_instance_that_hangs_is_ended_and_its_requests_go_on() -> None:
    with LocalCluster(2) as cluster:
        stream, source = start_one(cluster)
        cluster.links[source].engine.hang_s = 4.0
        wait_until(lambda: cluster.links[source].kills == 1)
        assert_exact(stream)


def test_an_engine_that_fails_ends_its_instance_only() -> None:
    with LocalCluster(2) as cluster:
        stream, source = start_one(cluster)
        cluster.links[source].engine.fail_steps = True
        assert_exact(stream)
        assert stream.life.replays == 1


def test_without_the_scheduler_requests_are_dispatched_and_with_it_again_migrated() -> None:
    policy = MigrationPolicy(enabled=True, period_s=0.02, out_threshold_blocks=1000.0, in_threshold_blocks=1000.0)
    with LocalCluster(2, migration=policy) as cluster:
        cluster.kill_scheduler()
        streams = [cluster.submit(n, tokens=30) for n in range(6)]
        for stream in streams:
            assert_exact(stream)
        assert cluster.front_end.bypassed >= 6
        assert {s.life.instance_first for s in streams} == {0, 1}
        cluster.restart_scheduler()
        wait_until(lambda: cluster.control.reports > 2)
        time.sleep(0.1)
        before = cluster.front_end.bypassed
        assert_exact(cluster.submit(50, tokens=5))
        assert cluster.front_end.bypassed == before


@pytest.mark.parametrize("moment", [lambda: 0.0, lambda: 0.03])
def test_cancelling_reaches_the_request_wherever_it_is(moment: Callable[[], float]) -> None:
    with LocalCluster(2) as cluster:
        stream, source = start_one(cluster, tokens=5000 // 25)

        def cancel(name: str) -> None:
            if name == "land":
                stream.cancel()
                time.sleep(moment())

        cluster.links[1 - source].before = cancel
        cluster.links[source].move("r0", 1 - source)
        assert stream.wait(2)
        assert stream.life.finish_reason == "abort"
        no_leak(cluster)


def test_a_request_that_no_engine_can_serve_fails_with_its_reason() -> None:
    with LocalCluster(2) as cluster:
        stream = cluster.submit(0, tokens=10_000)
        assert stream.wait(5)
        assert "more than the engine has" in str(stream.life.error)


def test_tokens_that_only_the_dead_source_had_come_from_where_the_request_went() -> None:
    with LocalCluster(2, build=lambda _: FakeEngine(step_s=0.01)) as cluster:
        stream, source = start_one(cluster)
        link = cluster.links[source]
        silent = threading.Event()

        def hold_back(name: str) -> None:
            if name == "poll":
                silent.wait(5)

        link.before = hold_back
        time.sleep(0.1)  # the poll under way has been answered
        assert link.move("r0", 1 - source).moved
        known = len(stream.tokens)
        time.sleep(0.1)
        assert len(stream.tokens) == known  # the new instance's tokens have to wait for those before
        link.kill()
        silent.set()
        assert_exact(stream)
        assert stream.life.replays == 0
