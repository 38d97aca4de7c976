"""Migration, cancellation and faults on a cluster of fake engines: every request ends with exactly its tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import pytest
from fake_engine import BLOCK_TOKENS, FakeEngine
from local import LIMITS, LocalCluster, assert_exact, no_leak, wait_until

from llumnix.cluster.real.front_end import Stream
from llumnix.cluster.real.messages import InstanceLost
from llumnix.cluster.real.spec import OnLoss
from llumnix.cluster.real.transport import PIECE_BYTES
from llumnix.engines.base import Parcel, Ready, StepResult
from llumnix.policies.migration import MigrationMethod, MigrationPolicy


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


@pytest.mark.parametrize("steps_ahead", [False, True])
def test_a_preemption_costs_the_time_until_it_goes_on_whatever_its_step_in_flight_still_yields(
    steps_ahead: bool,
) -> None:
    step_s = 0.01
    with LocalCluster(1, build=lambda _: FakeEngine(blocks=16, step_s=step_s, steps_ahead=steps_ahead)) as cluster:
        first = cluster.submit(0, tokens=50, prompt=4)
        wait_until(lambda: len(first.tokens) >= 1)
        second = cluster.submit(1, tokens=40, prompt=4)
        for stream in (first, second):
            assert_exact(stream)
        assert (first.life.preemptions, first.life.preemption_loss_s) == (0, 0.0)
        assert second.life.preemptions >= 1
        # It waits until the first one ends, 20 steps or more.
        assert second.life.preemption_loss_s > 15 * step_s
        assert second.life.preemption_loss_s == pytest.approx(second.life.max_token_gap_s - step_s, abs=0.1)


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


def test_a_draining_instance_gives_everything_away_and_takes_nothing() -> None:
    policy = MigrationPolicy(enabled=True, period_s=0.01)
    build = partial(FakeEngine, blocks=256, step_s=0.005)
    with LocalCluster(2, build=lambda id_: build(max_running=4 if id_ == 0 else 16), migration=policy) as cluster:
        draining = cluster.links[0]
        cluster.pinned = 0
        streams = [cluster.submit(n, tokens=200) for n in range(7)]
        wait_until(lambda: len(draining.engine.running) == 4 and len(draining.engine.waiting) == 3)
        draining.set_draining(True)
        streams += [cluster.submit(n, tokens=5) for n in range(7, 9)]  # sent there before the scheduler knows
        wait_until(lambda: not draining.engine.running and not draining.engine.waiting)
        assert not any(s.ended.is_set() for s in streams)
        wait_until(lambda: all(s.life.migrations == 1 for s in streams[:7]))
        cluster.pinned = None
        cluster.kill_scheduler()
        streams += one_after_the_other(cluster, range(10, 14), tokens=10)
        for stream in streams:
            assert_exact(stream)
        assert {s.life.instance_first for s in streams[7:]} == {1}
        draining.set_draining(False)
        wait_until(lambda: not cluster.front_end.loads[0].draining)
        back = cluster.submit(20, tokens=5)
        assert_exact(back)
        assert back.life.instance_first == 0
        no_leak(cluster)


def test_a_request_on_its_way_to_an_instance_that_begins_to_drain_stays() -> None:
    with LocalCluster(2) as cluster:
        stream, source = start_one(cluster)
        destination = cluster.links[1 - source]
        destination.before = lambda name: destination.set_draining(True) if name == "land" else None
        assert not cluster.links[source].move("r0", 1 - source).moved
        assert_exact(stream)
        assert stream.life.instance_last == source
        no_leak(cluster)


def test_what_cannot_move_is_refused_with_its_reason_and_stays() -> None:
    with LocalCluster(2) as cluster:
        stream = cluster.submit(0, tokens=60, refuse="it uses a LoRA adapter")
        wait_until(lambda: len(stream.tokens) > 2)
        source = stream.life.instance_last
        outcome = cluster.links[source].move("r0", 1 - source)
        assert (outcome.moved, outcome.reason) == (False, "it uses a LoRA adapter")
        assert_exact(stream)
        assert stream.life.instance_last == source


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


class HeavyFake(FakeEngine):
    """Two of its blocks are as much as is copied in one go. It notes how many it wrote, and after which step."""

    block_bytes = PIECE_BYTES // 2

    def __init__(self) -> None:
        super().__init__(blocks=160)
        self.steps = 0
        self.written: list[tuple[int, int]] = []

    def step(self) -> StepResult:
        self.steps += 1
        return super().step()

    def write_blocks(self, request_id: str, first_block: int, parcels: Sequence[Parcel]) -> Ready:
        self.written.append((sum(parcel.blocks for parcel in parcels), self.steps))
        return super().write_blocks(request_id, first_block, parcels)


def test_a_long_prefix_is_copied_in_pieces_between_which_steps_go_on() -> None:
    with LocalCluster(2, build=lambda _: HeavyFake(), limits=replace(LIMITS, copy_s=5.0)) as cluster:
        cluster.pinned = 1
        there = cluster.submit(1, tokens=200)
        cluster.pinned = 0
        stream = cluster.submit(0, tokens=60, prompt=70)
        wait_until(lambda: len(stream.tokens) > 2 and len(there.tokens) > 2)
        outcome = cluster.links[0].move(stream.life.request.request_id, 1, MigrationPolicy(max_stages=2))
        assert outcome.moved
        engine = cluster.links[1].engine
        assert isinstance(engine, HeavyFake)
        blocks = [count for count, _ in engine.written[:-1]]  # the last of them is the landing
        assert sum(blocks) >= 70 // BLOCK_TOKENS
        assert set(blocks[:-1]) == {2}
        steps = [step for _, step in engine.written]
        assert len(set(steps)) == len(steps)
        assert_exact(stream)
        assert_exact(there)
        no_leak(cluster)


def test_a_destination_that_dies_between_two_pieces_leaves_the_request_at_home() -> None:
    with LocalCluster(2, build=lambda _: HeavyFake(), restart_s=0.05) as cluster:
        cluster.pinned = 0
        stream = cluster.submit(0, tokens=60, prompt=70)
        wait_until(lambda: len(stream.tokens) > 2)
        link = cluster.links[1]

        def dies_at_the_third(name: str) -> None:
            if name == "receive" and link.calls.count("receive") == 3:
                link.kill()

        link.before = dies_at_the_third
        outcome = cluster.links[0].move(stream.life.request.request_id, 1)
        assert not outcome.moved
        assert link.calls.count("receive") == 3
        assert_exact(stream)
        assert stream.life.replays == 0
        wait_until(lambda: not link.dead)
        no_leak(cluster)


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


def test_a_scheduler_that_hangs_is_restarted_once() -> None:
    """Many wait for its answer at the same time, and the new one must not be ended for the silence of the old."""
    with LocalCluster(2, limits=replace(LIMITS, control_s=0.3)) as cluster:
        cluster.scheduler_hangs = True
        streams = [cluster.submit(n, tokens=10) for n in range(12)]
        for stream in streams:
            assert_exact(stream)
        assert cluster.scheduler_kills == 1
        assert cluster.front_end.bypassed == 12
        wait_until(lambda: len(cluster.control._last) == 2)
        time.sleep(0.1)
        before = cluster.front_end.bypassed
        assert_exact(cluster.submit(50, tokens=5))
        assert cluster.front_end.bypassed == before


def test_streams_end_with_the_front_end() -> None:
    with LocalCluster(1, build=lambda _: FakeEngine(step_s=0.05)) as cluster:
        stream = cluster.submit(0, tokens=100)
        wait_until(lambda: len(stream.tokens) > 2)
        cluster.front_end.close()
        assert len(list(stream)) < 100  # it ends at all
        assert (stream.life.finish_reason, stream.life.error) == ("error", "the front end was closed")


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


def test_a_submission_whose_answer_is_lost_is_not_served_twice() -> None:
    with LocalCluster(2, restart_s=0.02) as cluster:
        cluster.pinned = 0
        taken = []

        def lose(name: str) -> None:
            if name == "submit" and not taken:
                taken.append(cluster.links[0].llumlet)
                cluster.pinned = None
                raise InstanceLost("it cannot be reached just now")

        cluster.links[0].after = lose
        stream = cluster.submit(0, tokens=200)
        wait_until(lambda: cluster.links[0].kills == 1)
        assert_exact(stream)
        assert taken[0] is not cluster.links[0].llumlet
        no_leak(cluster)


def test_a_request_that_was_looked_for_and_found_can_move_to_whoever_was_asked() -> None:
    with LocalCluster(3, build=lambda _: FakeEngine(blocks=256)) as cluster:
        source, destination, third = 1, 2, 0  # asked before the destination is
        cluster.pinned = source
        stream, _ = start_one(cluster, tokens=400)
        assert cluster.links[source].move("r0", destination).moved
        wait_until(lambda: stream.life.instance_last == destination)
        cluster.links[source].kill()  # all are asked for what has been there
        wait_until(lambda: cluster.links[destination].calls.count("settle") > 0)
        wait_until(lambda: source in cluster.front_end._down)
        assert cluster.links[destination].move("r0", third).moved
        assert_exact(stream)
        assert stream.life.replays == 0


def test_a_request_that_does_not_come_to_rest_stays_and_its_engine_goes_on() -> None:
    limits = replace(LIMITS, step_s=0.2)
    with LocalCluster(2, limits=limits) as cluster:
        stream, source = start_one(cluster)
        engine = cluster.links[source].engine
        rest, engine.frozen_blocks = engine.frozen_blocks, lambda request_id: None
        outcome = cluster.links[source].move("r0", 1 - source)
        assert "did not come to rest" in outcome.reason
        wait_until(lambda: cluster.links[source].llumlet.after_step == [])
        engine.frozen_blocks = rest
        assert_exact(stream)
        no_leak(cluster)


def test_an_error_after_the_destination_has_taken_over_does_not_leave_two_of_a_request() -> None:
    with LocalCluster(2) as cluster:
        stream, source = start_one(cluster)
        write = cluster.links[1 - source].engine.write_blocks

        def broken_copy() -> None:
            raise RuntimeError("the copy failed")

        def last_write_fails(request_id: str, first_block: int, parcels: list[Parcel]) -> Ready:
            ready = write(request_id, first_block, parcels)
            return ready if first_block == 0 else broken_copy

        cluster.links[1 - source].engine.write_blocks = last_write_fails
        outcome = cluster.links[source].move("r0", 1 - source)
        assert not outcome.moved
        engines = [link.engine for link in cluster.links]
        assert not engines[source].running
        assert_exact(stream)
        no_leak(cluster)
