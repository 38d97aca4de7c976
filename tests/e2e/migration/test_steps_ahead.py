"""Migration while the scheduler runs a step ahead of the worker, through the doors of both model runners."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from driver import BLOCK, Cluster, migrate, request

from llumnix.migration import AbortReason, Action, Freeze
from llumnix.request import Priority

REQUESTS = [
    request("r0", 30),
    request("r1", 3 * BLOCK, max_tokens=150),
    request("r2", 150, temperature=1.0, seed=7, max_tokens=120),
    request("r3", 213, Priority.HIGH),
    request("r4", 270, temperature=1.0, seed=8),
]


@pytest.fixture(params=[1, 2], ids=["runner V1", "runner V2"])
def runner(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def engine(tmp_path: Path, runner: int, **changes: Any) -> Any:
    from paper_worker import start_on_paper

    from llumnix.engines.vllm.engine import VllmEngine
    from llumnix.engines.vllm.models import tiny_llama
    from llumnix.engines.vllm.options import VllmOptions

    options: dict[str, Any] = {
        "model": str(tiny_llama(tmp_path)),
        "block_size_tokens": BLOCK,
        "kv_blocks": 100,
        "max_model_tokens": 1024,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
    }
    return VllmEngine(VllmOptions(**(options | changes)), start=start_on_paper(runner))


def serve(one: Any) -> dict[str, list[int]]:
    cluster = Cluster(one)
    for asked in REQUESTS:
        one.add(asked)
    cluster.drain()
    cluster.assert_clean()
    return cluster.delivered.tokens


def test_many_migrations_and_thaws_change_no_token(tmp_path: Path, runner: int) -> None:
    pair = engine(tmp_path, runner), engine(tmp_path, runner)
    expected = serve(pair[0])
    assert len({tuple(tokens[:20]) for tokens in expected.values()}) == len(REQUESTS)
    cluster, chance, ended = Cluster(*pair), random.Random(1), Counter[str]()
    home = dict.fromkeys(expected, 0)
    for asked in REQUESTS:
        pair[0].add(asked)
    for _ in range(9):
        cluster.step(0)
    for _ in range(5000):
        if not any(one.has_work() for one in pair):
            break
        cluster.step()
        moving = chance.choice(list(expected))
        source = home[moving]
        if chance.random() < 0.2:
            ended["thaw"] += _freeze_and_thaw(cluster, moving, source)
        else:
            moved = migrate(cluster, moving, source, 1 - source)
            home[moving] = 1 - source if moved.ok else source
            ended["moved" if moved.ok else moved.reason] += 1
    assert cluster.delivered.tokens == expected
    cluster.assert_clean()
    assert ended["moved"] > 20
    assert ended["thaw"] > 2
    assert set(ended) <= {"moved", "thaw", "it is not here", "it left this instance less than a step ago", "finished"}


def test_the_last_token_of_a_preempted_request_comes_with_the_word_that_it_is_preempted(
    tmp_path: Path, runner: int
) -> None:
    """What a preemption costs is counted from that word on: no token may come between it and the next step with it."""
    one = engine(tmp_path, runner, kv_blocks=12)
    for asked in (request("r0", 30, max_tokens=300), request("r1", 30, max_tokens=300)):
        one.add(asked)
    waiting: set[str] = set()
    in_flight = waited = 0
    while one.has_work():
        result = one.step()
        delivered = {output.request_id for output in result.outputs}
        waiting -= set(result.scheduled)
        assert not waiting & delivered
        waited += len(waiting)
        in_flight += len(delivered.intersection(result.preempted))
        waiting.update(result.preempted)
    assert in_flight >= 1
    assert waited > 10


def _freeze_and_thaw(cluster: Cluster, request_id: str, at: int) -> bool:
    one = cluster.engines[at]
    if one.refusal(request_id) is not None:
        return False
    one.depart(request_id)
    one.freeze(request_id)
    while one.frozen_blocks(request_id) is None:
        cluster.step(at)
    return one.thaw(request_id)


def test_an_arriving_request_computes_one_token_and_a_frozen_one_waits_for_one_step(
    tmp_path: Path, runner: int
) -> None:
    pair = engine(tmp_path, runner), engine(tmp_path, runner)
    expected = serve(pair[0])
    cluster = Cluster(*pair)
    for asked in REQUESTS:
        pair[0].add(asked)
    cluster.step_until(10, expected)
    for asked in REQUESTS:
        assert migrate(cluster, asked.request_id, 0, 1, decode_between=False).ok
    cluster.drain()
    assert cluster.delivered.tokens == expected
    assert max(max(step.values()) for step in cluster.scheduled[1]) == 1
    for tokens, makers in zip(expected.values(), cluster.delivered.makers.values(), strict=True):
        assert 10 <= makers.count(0) <= 10 + 2 * len(REQUESTS)
        assert len(makers) == len(tokens)


def test_no_seat_at_the_commit_or_at_the_thaw(tmp_path: Path, runner: int) -> None:
    a, b = (engine(tmp_path, runner, max_num_seqs=2) for _ in range(2))
    moving, local = REQUESTS[2], [request(f"local{i}", 40, max_tokens=25) for i in range(3)]
    alone = Cluster(a)
    for asked in (moving, *local):
        a.add(asked)
    alone.drain()
    cluster = Cluster(a, b)
    a.add(moving)
    cluster.step_until(5, ["r2"])
    a.depart("r2")
    a.freeze("r2")
    for asked in local[:2]:
        a.add(asked)
    while a.frozen_blocks("r2") is None or a.load(0, draining=False).running < 2:
        cluster.step(0)
    assert a.thaw("r2")
    assert a.load(0, draining=False).waiting_tokens == 0
    cluster.step_until(25, ["local0", "local1"])
    cluster.step_until(15, ["r2"])
    moved = migrate(cluster, "r2", 0, 1, hook=lambda action: None)
    assert moved.ok
    b.add(local[2])
    cluster.drain()
    assert cluster.delivered.tokens == alone.delivered.tokens
    assert max(step.get("r2", 0) for step in cluster.scheduled[1]) == 1
    cluster.assert_clean()


def test_the_request_ends_in_the_step_in_flight(tmp_path: Path, runner: int) -> None:
    a, b = (engine(tmp_path, runner) for _ in range(2))
    cluster = Cluster(a, b)
    a.add(REQUESTS[0])
    cluster.step_until(79, ["r0"])
    moved = migrate(cluster, "r0", 0, 1, max_stages=1)
    assert (moved.ok, moved.reason) == (False, AbortReason.finished)
    cluster.drain()
    assert cluster.delivered.finished == {"r0": "length"}
    cluster.assert_clean()


def test_a_block_on_paper_that_is_withheld_is_noticed(tmp_path: Path, runner: int) -> None:
    a, b = (engine(tmp_path, runner) for _ in range(2))
    expected = serve(a)
    b._core.worker.llumnix_write = lambda block_ids, parcels, *, wait: b._core.worker.memory.update(
        {block: [None] * BLOCK for block in block_ids}
    )
    cluster = Cluster(a, b)
    for asked in REQUESTS:
        a.add(asked)
    cluster.step_until(10, expected)
    assert migrate(cluster, "r1", 0, 1).ok
    cluster.drain()
    assert {i for i in expected if cluster.delivered.tokens[i] != expected[i]} == {"r1"}


@pytest.mark.parametrize("busy", [True, False])
def test_an_idle_engine_warms_up_for_a_request_that_it_expects(tmp_path: Path, runner: int, busy: bool) -> None:
    a, b = engine(tmp_path, runner), engine(tmp_path, runner)
    cluster = Cluster(a, b)
    a.add(REQUESTS[0])
    if busy:
        b.add(REQUESTS[1])
        cluster.step_until(5, ["r1"], 1)
    cluster.step_until(5, ["r0"], 0)

    def hook(action: Action) -> None:
        if isinstance(action, Freeze):
            b.expect("r0")

    assert migrate(cluster, "r0", 0, 1, hook=hook).ok
    assert b.core.dummy_batches == (0 if busy else 1)
    b.expect("r9")
    assert b.core.dummy_batches == (0 if busy else 1)


def test_workers_free_their_shared_memory_before_they_end(tmp_path: Path, runner: int) -> None:
    one = engine(tmp_path, runner)
    one.shutdown()
    assert one.core.worker.closed
