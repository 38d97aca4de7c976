"""However a migration ends, each request has its tokens and no block is lost; and requests in odd places can move."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
from driver import BLOCK, Cluster, Make, Withholding, migrate, request

from llumnix.engines.base import EngineRequest, Parcel
from llumnix.migration import AbortReason, Action, Commit, Copy, Freeze, Reserve
from llumnix.request import Priority

REQUESTS = [
    request("one", 3 * BLOCK, presence_penalty=0.7),
    request("two", 70, temperature=0.9, seed=3),
    request("three", 100),
]


@pytest.fixture(scope="module")
def engines(engine_of: Make) -> tuple[Any, Any]:
    return engine_of("a"), engine_of("b")


def tokens_of(engine: Any, requests: Sequence[EngineRequest] = REQUESTS) -> dict[str, list[int]]:
    """The run without migration."""
    cluster = Cluster(engine)
    for one in requests:
        engine.add(one)
    cluster.drain()
    return cluster.delivered.tokens


@pytest.fixture(scope="module")
def expected(engines: tuple[Any, Any]) -> dict[str, list[int]]:
    return tokens_of(engines[0])


def start(*engines: Any, tokens: int = 10, requests: Sequence[EngineRequest] = REQUESTS) -> Cluster:
    cluster = Cluster(*engines)
    for one in requests:
        engines[0].add(one)
    if tokens:
        cluster.step_until(tokens, [one.request_id for one in requests])
    return cluster


def finish(cluster: Cluster, expected: dict[str, list[int]]) -> None:
    cluster.drain()
    assert cluster.delivered.tokens == expected
    cluster.assert_clean()


# --- the destination cannot


def test_a_full_destination_refuses_and_the_request_stays(
    engines: tuple[Any, Any], engine_of: Make, expected: dict[str, list[int]]
) -> None:
    small = engine_of("small", kv_blocks=9, max_model_tokens=256)
    odd = request("local", 7 * BLOCK - 20, max_tokens=20)
    cluster = start(engines[0], small)
    small.add(odd)
    cluster.step(1)
    refused = migrate(cluster, "one", 0, 1)
    assert not refused.ok
    assert "max_model_tokens is 256 here and 1024 there" in refused.reason  # engines that differ do not exchange KV
    cluster.drain()
    assert {i: cluster.delivered.tokens[i] for i in expected} == expected
    cluster.assert_clean()


def test_memory_that_runs_out_is_a_refusal(engine_of: Make) -> None:
    one = request("one", 10 * BLOCK)
    local = request("local", 24 * BLOCK)
    a, b = (engine_of(name, kv_blocks=33) for name in "ab")
    expected = tokens_of(a, [one]) | tokens_of(a, [local])
    cluster = start(a, b, requests=[one])
    b.add(local)
    cluster.step(1)
    refused = migrate(cluster, "one", 0, 1)
    assert not refused.ok
    assert refused.reason == "there is no room for 10 blocks"
    finish(cluster, expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_memory_that_runs_out_in_a_later_stage(
    engines: tuple[Any, Any], expected: dict[str, list[int]], frozen: bool
) -> None:
    class RunsOut(Withholding):
        def extend(self, request_id: str, blocks: int) -> bool:
            return False

    cluster = start(engines[0], RunsOut(engines[1]))
    seen: list[type] = []

    def run_ahead(action: Action) -> None:
        seen.append(type(action))
        for _ in range(BLOCK if isinstance(action, Copy) and not frozen else 0):
            cluster.step(0)

    moved = migrate(cluster, "one", 0, 1, max_stages=2 if frozen else 5, last_stage_max_blocks=0, hook=run_ahead)
    assert (moved.ok, moved.reason) == (False, AbortReason.no_memory)
    assert (Freeze in seen) is frozen
    finish(cluster, expected)


def test_a_destination_that_dies_mid_way(engines: tuple[Any, Any], expected: dict[str, list[int]]) -> None:
    """It answers the last copy with an error; the source thaws the request and the reservation is freed."""

    class Dies(Withholding):
        def write_blocks(self, request_id: str, first_block: int, parcels: Sequence[Parcel]) -> None:
            raise ConnectionError

    cluster = start(engines[0], Dies(engines[1]))
    for moving in ("one", "two"):
        with pytest.raises(ConnectionError):
            migrate(cluster, moving, 0, 1, carrier="shared_memory")
        assert engines[0].thaw(moving)
        engines[1].cancel(moving)
    finish(cluster, expected)


def test_moves_in_pieces_use_the_same_shared_memory(engines: tuple[Any, Any], expected: dict[str, list[int]]) -> None:
    """Only the latest parcel of a request holds memory: a source asks for the next once one has arrived."""
    from llumnix.engines.vllm import carriers

    carriers.close()
    cluster = start(*engines)
    lent: set[tuple[str, int]] = set()

    def look(action: Action) -> None:
        if isinstance(action, Freeze):
            assert len(carriers._pool._lent) == 1
            lent.update(carriers._pool._lent)

    for turn, moving in enumerate(("one", "two", "one", "two", "one")):
        source = turn // 2 % 2
        assert migrate(cluster, moving, source, 1 - source, carrier="shared_memory", hook=look).ok
        assert carriers._pool._lent == {}
    assert len(lent) == 5  # parcels
    assert len({path for path, _ in lent}) <= 2  # segments: of the tiny model's one stage and of its last
    finish(cluster, expected)
    carriers.close()
    assert not list(carriers.memory_directory().glob(f"llumnix-kv-{os.getpid()}-*"))


def test_as_many_run_as_can_run(engine_of: Make) -> None:
    a, b = (engine_of(name, max_num_seqs=2) for name in "ab")
    here, there = [request(f"here-{i}", 40 + i) for i in range(2)], [request(f"there-{i}", 40 + i) for i in range(2)]
    expected = tokens_of(a, here) | tokens_of(a, there)
    cluster = start(a, b, requests=here)
    for one in there:
        b.add(one)
    cluster.step(1)
    assert migrate(cluster, "here-0", 0, 1).reason == "as many requests are running as can run"
    finish(cluster, expected)


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_the_last_seat_is_taken_before_the_commit(engine_of: Make, prefix_caching: bool) -> None:
    """The request then waits with its KV, and goes on with a single token."""
    a, b = (engine_of(name, max_num_seqs=2, prefix_caching=prefix_caching) for name in "ab")
    here = [request("here", 3 * BLOCK, temperature=1.0, seed=1)]
    there = [request(f"there-{i}", 40 + i, max_tokens=30) for i in range(2)]
    expected = tokens_of(a, here) | tokens_of(a, there)
    cluster = start(a, b, requests=here)

    def take_seats(action: Action) -> None:
        if isinstance(action, Commit):
            for one in there:
                b.add(one)
            cluster.step(1)

    assert migrate(cluster, "here", 0, 1, hook=take_seats).ok
    load = b.load(1, draining=False)
    assert (load.running, load.waiting, load.preempted, load.waiting_tokens) == (2, 1, 0, 0)
    cluster.drain()
    assert cluster.delivered.tokens == expected
    assert max(step.get("here", 0) for step in cluster.scheduled[1]) == 1
    cluster.assert_clean()


def test_the_seat_is_taken_before_the_thaw(engine_of: Make) -> None:
    a = engine_of("a", max_num_seqs=2)
    here = [request("here", 3 * BLOCK, temperature=1.0, seed=1), request("other", 50)]
    late = request("late", 45)
    expected = tokens_of(a, here) | tokens_of(a, [late])
    cluster = start(a, requests=here)
    a.depart("here")
    a.freeze("here")
    assert a.frozen_blocks("here") == 4
    a.add(late)
    cluster.step()
    cluster.step()
    assert a.thaw("here")
    cluster.scheduled[0].clear()
    finish(cluster, expected)
    assert max(step.get("here", 0) for step in cluster.scheduled[0]) == 1


# --- the request cannot


def test_the_request_ends_during_a_stage(engines: tuple[Any, Any], expected: dict[str, list[int]]) -> None:
    cluster = start(*engines, tokens=75)

    def outrun(action: Action) -> None:
        if isinstance(action, Freeze):
            for _ in range(8):
                cluster.step(0)

    moved = migrate(cluster, "one", 0, 1, hook=outrun)
    assert (moved.ok, moved.reason) == (False, AbortReason.finished)
    finish(cluster, expected)


@pytest.mark.parametrize("at", [Reserve, Copy, Freeze, Commit])
def test_the_client_leaves_at_any_step(engines: tuple[Any, Any], expected: dict[str, list[int]], at: type) -> None:
    cluster = start(*engines)
    seen = []

    def leave(action: Action) -> None:
        if isinstance(action, at) and not seen:
            seen.append(action)
            engines[0].abort("one")

    assert not migrate(cluster, "one", 0, 1, hook=leave).ok
    cluster.drain()
    assert {i: cluster.delivered.tokens[i] for i in ("two", "three")} == {i: expected[i] for i in ("two", "three")}
    assert "one" not in cluster.delivered.finished
    cluster.assert_clean()


def test_an_arriving_request_can_be_aborted(engines: tuple[Any, Any]) -> None:
    cluster = start(*engines)
    departure = engines[0].depart("one")
    engines[1].reserve(departure, 3)
    engines[1].abort("one")
    assert not engines[1].extend("one", 1)
    engines[0].abort("one")
    assert not engines[0].thaw("one")
    cluster.drain()
    cluster.assert_clean()


def test_the_source_dies_and_the_destination_frees_what_it_reserved(engines: tuple[Any, Any]) -> None:
    cluster = start(*engines)
    departure = engines[0].depart("one")
    engines[1].reserve(departure, 3)
    assert engines[1].load(1, draining=False).free_blocks == engines[1].load(1, draining=False).total_blocks - 3
    engines[1].cancel("one")
    engines[1].cancel("one")
    for one in REQUESTS:
        engines[0].abort(one.request_id)
    engines[0].thaw("one")
    cluster.drain()
    cluster.assert_clean()


@pytest.mark.parametrize(("watermark", "running"), [(0.0, 2), (0.5, 1)])
def test_a_request_is_admitted_beside_another_where_the_watermark_stays_free(
    engine_of: Make, watermark: float, running: int
) -> None:
    one = engine_of("watermark", kv_blocks=40, watermark_fraction=watermark)
    cluster = Cluster(one)
    for asked in (request("r0", 10 * BLOCK), request("r1", 10 * BLOCK)):
        one.add(asked)
    cluster.step_until(3, ["r0"])
    assert one.load(0, draining=False).running == running
    cluster.drain()
    assert set(cluster.delivered.finished) == {"r0", "r1"}


def test_the_request_is_preempted_meanwhile(engine_of: Make) -> None:
    a, b = (engine_of(name, kv_blocks=33) for name in "ab")
    requests = [request(f"r{i}", 6 * BLOCK, max_tokens=100) for i in range(4)]
    expected = tokens_of(b, requests[:2]) | tokens_of(b, requests[2:])
    cluster = start(a, b, tokens=1, requests=requests)
    youngest = max(requests, key=lambda one: one.arrival_s).request_id
    reasons = []

    def press(action: Action) -> None:
        while isinstance(action, Freeze) and not cluster.preempted:
            cluster.step(0)

    reasons.append(migrate(cluster, youngest, 0, 1, hook=press).reason)
    assert reasons == [AbortReason.preempted]
    assert a.load(0, draining=False).preempted == 1
    finish(cluster, expected)


def test_a_migration_takes_the_place_of_a_preemption(engine_of: Make) -> None:
    a, b = (engine_of(name, kv_blocks=33) for name in "ab")
    requests = [request(f"r{i}", 6 * BLOCK, max_tokens=100) for i in range(4)]
    expected = tokens_of(b, requests[:2]) | tokens_of(b, requests[2:])
    cluster = start(a, b, tokens=1, requests=requests)
    assert migrate(cluster, "r1", 0, 1).ok
    finish(cluster, expected)
    assert cluster.preempted == []


def test_what_has_just_left_does_not_come_back_within_a_step(
    engines: tuple[Any, Any], expected: dict[str, list[int]]
) -> None:
    """Workers forget finished requests by id, one step later; the same id must not be forgotten with them."""
    cluster = start(*engines)
    assert migrate(cluster, "one", 0, 1).ok
    cluster.step(1)
    assert migrate(cluster, "one", 1, 0, decode_between=False).reason == "it left this instance less than a step ago"
    cluster.step(0)
    assert migrate(cluster, "one", 1, 0).ok
    finish(cluster, expected)


def test_an_id_is_used_again_at_once(engines: tuple[Any, Any], expected: dict[str, list[int]]) -> None:
    cluster = start(*engines)
    for known in ((), expected["two"][:10]):
        engines[0].abort("two")
        assert engines[0].has_work()
        engines[0].add(REQUESTS[1], known)
        cluster.delivered.tokens["two"] = list(known)
        cluster.step(0)
        cluster.step_until(len(known) + 3, ["two"])
    finish(cluster, expected)


# --- requests in odd places


def test_a_request_moves_in_the_middle_of_its_prefill(engine_of: Make) -> None:
    """Generators are left out: vLLM on CPUs cannot prefill a seeded request in chunks."""
    a, b = (engine_of(name, max_num_batched_tokens=64) for name in "ab")
    long = request("long", 700, presence_penalty=0.5, max_tokens=40)
    expected = tokens_of(a, [long])
    cluster = start(a, b, tokens=0, requests=[long])
    for _ in range(4):
        cluster.step(0)
    moved = migrate(cluster, "long", 0, 1)
    assert moved.ok
    assert moved.copied[0] == 8
    finish(cluster, expected)
    computed = [sum(step.get("long", 0) for step in steps) for steps in cluster.scheduled]
    assert sum(computed) == 700 + 39  # nothing twice; the last token needs no KV
    assert min(computed) > 200


@pytest.mark.parametrize("tokens", [0, 12])
def test_a_waiting_request_changes_queues(engine_of: Make, tokens: int) -> None:
    """One that has never run, and one that was preempted after some tokens: it takes them along, and its generator."""
    a, b = (engine_of(name, kv_blocks=33) for name in "ab")
    moving = request("moving", 10 * BLOCK, temperature=0.8, seed=4)
    filler = request("filler", 29 * BLOCK, Priority.HIGH, max_tokens=60)
    expected = tokens_of(a, [moving]) | tokens_of(a, [filler])
    cluster = start(a, b, tokens=tokens, requests=[moving])
    a.add(filler)
    while tokens and not cluster.preempted:
        inner = a._scheduler.requests["moving"]
        a._scheduler.running.remove(inner)
        a._scheduler._preempt_request(inner, 0.0)
        cluster.step(0)
    if not tokens:
        cluster.step(0)
    assert [one.request_id for one in a.queued()] == ["moving"]
    moved = migrate(cluster, "moving", 0, 1)
    assert moved.ok
    assert moved.copied == [0]
    finish(cluster, expected)
    assert set(cluster.delivered.makers["moving"][tokens:]) == {1}


def test_blocks_that_the_destination_has_cached_are_not_copied(engine_of: Make) -> None:
    a, b = (engine_of(name, prefix_caching=True) for name in "ab")
    expected = tokens_of(a)
    hits = []
    for _ in range(2):
        cluster = start(a, b)
        moved = [migrate(cluster, one.request_id, 0, 1) for one in REQUESTS]
        assert all(one.ok for one in moved)
        finish(cluster, expected)
        hits.append([one.hit_blocks for one in moved])
        for _ in range(2):
            cluster.step()
    assert hits[0] == [0, 0, 0]
    assert hits[1] == [3, 2, 3]
    # What arrived is itself a prefix for others, generated tokens included.
    history = EngineRequest("history", (*REQUESTS[0].prompt, *expected["one"]), {"temperature": 0.0, "max_tokens": 5})
    b.add(history)
    cluster = Cluster(a, b)
    cluster.drain()
    assert cluster.scheduled[1][0]["history"] < BLOCK + 1


# --- what is asked of an engine otherwise


def test_high_priority_requests_run_first_and_are_preempted_last(engine_of: Make) -> None:
    a = engine_of("a", max_num_seqs=2)
    cluster = Cluster(a)
    for i in range(3):
        a.add(request(f"n{i}", 40))
    cluster.step()
    a.add(request("h", 40, Priority.HIGH))
    load = a.load(0, draining=True)
    assert (load.running, load.waiting, load.high_priority, load.draining) == (2, 2, 1, True)
    assert load.head_tokens == 40
    assert load.waiting_tokens == 80
    assert next(one.request_id for one in a.queued()) == "h"
    assert {one.priority for one in a.movable()} == {Priority.NORMAL}
    cluster.drain()
    cluster.assert_clean()


def test_a_request_that_is_too_long_is_told_so(engines: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="has 1024 tokens, the engine takes fewer than 1024"):
        engines[0].add(request("long", 1024))
    assert not engines[0].has_work()


def test_prompt_logprobs_keep_a_request_until_they_are_there(engine_of: Make) -> None:
    a = engine_of("a", max_num_batched_tokens=64)
    one = request("scored", 200, prompt_logprobs=1, max_tokens=5)
    cluster = start(a, tokens=0, requests=[one])
    cluster.step()
    assert a.refusal("scored") == "its prompt logprobs are still being collected"
    assert a.movable() == []
    cluster.step_until(1, ["scored"])
    assert a.refusal("scored") is None
    cluster.drain()


def test_an_unknown_vllm_serves_without_migration(
    engine_of: Make, engines: tuple[Any, Any], expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llumnix.engines.vllm import versions

    monkeypatch.setattr(versions, "check", lambda: versions.Finding("0.47.1", ()))
    newer = engine_of("newer", max_num_seqs=15)
    assert newer.migration_unsupported is not None
    assert newer.migration_unsupported.startswith("vLLM 0.47.1 is outside 0.26 to 0.32")
    cluster = start(newer, engines[1])
    assert newer.movable() == []
    refused = migrate(cluster, "one", 0, 1)
    assert (refused.ok, refused.reason) == (False, newer.migration_unsupported)
    finish(cluster, expected)
    back = start(engines[1], newer)
    assert migrate(back, "one", 0, 1).reason == newer.migration_unsupported
    finish(back, expected)
