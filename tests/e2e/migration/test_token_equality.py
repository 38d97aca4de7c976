"""A migrated request has the tokens that it would have had at home: for every way of sampling, wherever it is moved."""

from __future__ import annotations

from typing import Any

import pytest
from driver import BLOCK, Cluster, Delivered, Make, Moved, Withholding, migrate, request

from llumnix.engines.base import EngineRequest
from llumnix.migration import Action, Copy
from llumnix.request import Priority

# Prompts end one token before a block is full, where it is, one after, and in the middle of one.
REQUESTS: dict[str, EngineRequest] = {
    r.request_id: r
    for r in (
        request("greedy", 2 * BLOCK),
        request("greedy-long", 5 * BLOCK + 7),
        request("penalties", 3 * BLOCK - 1, presence_penalty=0.8, frequency_penalty=0.6),
        request("seeded", BLOCK + 1, temperature=1.0, seed=77),
        request("seeded-narrow", 40, temperature=0.9, top_p=0.9, top_k=50, seed=5, repetition_penalty=1.2),
        request("min-tokens", 50, min_tokens=60, stop_token_ids=list(range(3, 130)), ignore_eos=False),
        request("logprobs", 70, logprobs=3, temperature=0.7, seed=9),
        request("high", 45, Priority.HIGH, presence_penalty=0.5),
    )
}
SEEDED = {"seeded", "seeded-narrow", "logprobs"}


@pytest.fixture(scope="module")
def engines(engine_of: Make) -> tuple[Any, Any]:
    return engine_of("a"), engine_of("b")


@pytest.fixture(scope="module")
def expected(engines: tuple[Any, Any]) -> Delivered:
    """The run without migration; both engines must agree on it."""
    runs = [serve(engine) for engine in engines]
    assert runs[0].tokens == runs[1].tokens
    assert len(runs[0].tokens["min-tokens"]) > 60, "the stop tokens must act after min_tokens"
    assert runs[0].finished["min-tokens"] == "stop"
    assert all(len(set(tokens)) > 5 for tokens in runs[0].tokens.values()), "outputs must vary, or nothing is tested"
    return runs[0]


def serve(engine: Any) -> Delivered:
    cluster = Cluster(engine)
    for one in REQUESTS.values():
        engine.add(one)
    cluster.drain()
    cluster.assert_clean()
    return cluster.delivered


def start(engines: tuple[Any, Any], tokens: int) -> Cluster:
    """All requests on the first engine, each with so many tokens."""
    cluster = Cluster(*engines)
    for one in REQUESTS.values():
        engines[0].add(one)
    if tokens:
        cluster.step_until(tokens, REQUESTS)
    return cluster


def is_asynchronous(engine: Any) -> bool:
    return bool(engine._core.vllm_config.scheduler_config.async_scheduling)


def finish(cluster: Cluster, expected: Delivered) -> None:
    cluster.drain()
    assert cluster.delivered.tokens == expected.tokens
    assert cluster.delivered.finished == expected.finished
    cluster.assert_clean()


@pytest.mark.parametrize("carrier", ["inline", "shared_memory", "cuda_ipc"])
@pytest.mark.parametrize("index", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_tokens_are_the_same_wherever_the_request_is_moved(
    engines: tuple[Any, Any], expected: Delivered, index: int, carrier: str
) -> None:
    if carrier not in engines[0].carriers:
        pytest.skip(f"these engines cannot send by {carrier}: it takes a GPU")
    cluster = start(engines, index)
    made: dict[str, int] = {}
    for request_id in REQUESTS:
        before = len(cluster.delivered.tokens.get(request_id, ()))
        moved = migrate(cluster, request_id, 0, 1, carrier=carrier, decode_between=False)
        assert moved.ok, moved
        made[request_id] = len(cluster.delivered.tokens.get(request_id, ()))
        # With asynchronous scheduling steps that are under way when the request is frozen still end with a token.
        assert index <= before <= made[request_id] <= before + (2 if is_asynchronous(engines[0]) else 0)
    finish(cluster, expected)
    for request_id in REQUESTS:
        assert cluster.delivered.makers[request_id].count(0) == made[request_id]
    if index:  # nothing was computed again: the destination never saw more than one token at a time
        assert max(max(step.values()) for step in cluster.scheduled[1]) == 1
    for request_id in ("logprobs",):
        ours, theirs = cluster.delivered.logprobs[request_id], expected.logprobs[request_id]
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_stages_are_copied_while_the_request_decodes(engines: tuple[Any, Any], expected: Delivered) -> None:
    cluster = start(engines, 5)
    moved = [migrate(cluster, request_id, 0, 1) for request_id in REQUESTS]
    assert all(one.ok for one in moved)
    assert any(len(one.copied) > 1 for one in moved)
    assert all(one.copied[-1] <= 2 for one in moved)
    finish(cluster, expected)


def test_the_last_stage_is_small_even_if_the_source_runs_ahead(engines: tuple[Any, Any], expected: Delivered) -> None:
    cluster = start(engines, 2)

    def run_ahead(action: Action) -> None:
        if isinstance(action, Copy) and not action.last:
            for _ in range(BLOCK):
                cluster.step(0)

    moved = migrate(cluster, "greedy-long", 0, 1, max_stages=3, last_stage_max_blocks=0, hook=run_ahead)
    assert moved.ok
    assert moved.copied == [5, 1, 2]  # what the prompt filled; what was filled during that; and the rest
    finish(cluster, expected)


def test_stop_and_copy_is_one_stage(engines: tuple[Any, Any], expected: Delivered) -> None:
    cluster = start(engines, 3)
    moved = migrate(cluster, "greedy-long", 0, 1, max_stages=1, last_stage_max_blocks=0)
    assert moved.ok
    assert moved.copied == [6]
    finish(cluster, expected)


def test_back_and_forth_many_times(engines: tuple[Any, Any], expected: Delivered) -> None:
    cluster = start(engines, 1)
    moves: list[Moved] = []
    for turn in range(20):
        for request_id in REQUESTS:
            if request_id not in cluster.delivered.finished:
                moves.append(migrate(cluster, request_id, turn % 2, 1 - turn % 2))
        cluster.step()
    assert sum(move.ok for move in moves) > 40
    finish(cluster, expected)


def test_under_load_nobody_else_notices(engines: tuple[Any, Any], expected: Delivered) -> None:
    """Every request is moved while others start, run and end on both sides; theirs are compared, too."""
    others = [request(f"other-{i}", 20 + 17 * i, max_tokens=15 + 5 * i) for i in range(10)]
    alone = Cluster(engines[1])
    for other in others:
        engines[1].add(other)
    alone.drain()
    cluster = start(engines, 2)
    waiting = list(others)
    moved = []
    for request_id in REQUESTS:
        for engine in engines:
            if waiting:
                engine.add(waiting.pop())
        cluster.step()
        moved.append(migrate(cluster, request_id, 0, 1))
    for other in waiting:
        engines[0].add(other)
    assert all(one.ok for one in moved), moved
    cluster.drain()
    assert cluster.delivered.tokens == expected.tokens | alone.delivered.tokens
    cluster.assert_clean()


@pytest.mark.parametrize("block", [0, 3, 6])
def test_a_block_that_is_withheld_is_noticed(engines: tuple[Any, Any], expected: Delivered, block: int) -> None:
    cluster = start((engines[0], Withholding(engines[1], block=block)), BLOCK)
    assert migrate(cluster, "greedy-long", 0, 1).ok
    cluster.drain()
    differing = {i for i in REQUESTS if cluster.delivered.tokens[i] != expected.tokens[i]}
    assert differing == {"greedy-long"}
    cluster.assert_clean()


def test_a_generator_state_that_is_withheld_is_noticed(engines: tuple[Any, Any], expected: Delivered) -> None:
    if engines[0]._scheduler.use_v2_model_runner:
        pytest.skip("model runner V2 has no generators: what it draws is a function of seed and position")
    cluster = start((engines[0], Withholding(engines[1], sampler=True)), 5)
    for request_id in REQUESTS:
        assert migrate(cluster, request_id, 0, 1).ok
    cluster.drain()
    assert {i for i in REQUESTS if cluster.delivered.tokens[i] != expected.tokens[i]} == SEEDED
    cluster.assert_clean()


@pytest.mark.parametrize("delivered", [1, 20, BLOCK + 3])
def test_replay_goes_on_after_the_tokens_that_were_delivered(
    engines: tuple[Any, Any], expected: Delivered, delivered: int
) -> None:
    """What follows the death of an instance: its KV is gone, the tokens that the client has are not."""
    cluster = Cluster(engines[1])
    for request_id, one in REQUESTS.items():
        known = expected.tokens[request_id][:delivered]
        cluster.delivered.tokens[request_id] = list(known)
        engines[1].add(one, known)
    cluster.drain()
    assert cluster.delivered.tokens == expected.tokens
    cluster.assert_clean()
