"""KV tensors of one process read by another, on real GPUs: on the same one and, where there are two, across them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU here", allow_module_level=True)

from llumnix.engines.vllm.peer_memory import BlocksThere, Export, PeerMemory, Rows, copy_rows  # noqa: E402

LAYERS, ROWS, ROW = 4, 64, (8, 16, 64)
GPUS = range(min(2, torch.cuda.device_count()))


def tensors(gpu: int, seed: int) -> list[Any]:
    torch.manual_seed(seed)
    return [torch.randn((ROWS, *ROW), dtype=torch.float16, device=f"cuda:{gpu}") for _ in range(LAYERS)]


def source(pipe: Connection) -> None:
    """A process that owns tensors and waits."""
    memory = PeerMemory(tensors(0, seed=7))
    pipe.send((memory.export(), [cache.cpu() for cache in memory._rows.tensors]))
    pipe.recv()


@pytest.fixture(params=GPUS, ids=lambda gpu: f"source-on-{gpu}")
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Export, list[Any], Any]]:
    """A source that sees one GPU only, which for it is number 0, as an instance under Ray does."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=source, args=(theirs,), daemon=True)
    with monkeypatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", str(request.param))
        process.start()
    export, content = ours.recv()
    yield export, content, process
    process.kill()


def test_rows_arrive_from_another_process(there: tuple[Export, list[Any], Any]) -> None:
    export, content, _ = there
    caches = tensors(0, seed=1)
    before = [cache.cpu() for cache in caches]
    memory = PeerMemory(caches)
    memory.map(export)
    rows, here = [3, 60, 0, 17], [5, 6, 63, 1]
    copied = memory.copy(BlocksThere(export.key, tuple(rows)), here)
    copied.synchronize()
    untouched = [row for row in range(ROWS) if row not in here]
    for cache, theirs, old in zip(caches, content, before, strict=True):
        assert torch.equal(cache.cpu()[here], theirs[rows])
        assert torch.equal(cache.cpu()[untouched], old[untouched])


def test_work_after_settling_sees_what_was_copied(there: tuple[Export, list[Any], Any]) -> None:
    export, content, _ = there
    memory = PeerMemory(tensors(0, seed=1))
    memory.map(export)
    for turn in range(20):
        rows = [(turn * 7 + k) % ROWS for k in range(32)]
        memory.copy(BlocksThere(export.key, tuple(rows)), list(range(32)))
        memory.settle()
        seen = [cache[:32].clone() for cache in memory._rows.tensors]  # on the stream of the steps, without waiting
        for cache, theirs in zip(seen, content, strict=True):
            assert torch.equal(cache.cpu(), theirs[rows])


def test_a_source_that_dies_does_not_take_the_reader_along(there: tuple[Export, list[Any], Any]) -> None:
    export, _, process = there
    memory = PeerMemory(tensors(0, seed=1))
    memory.map(export)
    blocks = BlocksThere(export.key, tuple(range(ROWS)))
    for turn in range(200):
        memory.copy(blocks, list(range(ROWS)))
        if turn == 20:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    torch.cuda.synchronize()
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_engines_of_one_process_read_each_other() -> None:
    ours, theirs = PeerMemory(tensors(0, seed=1)), PeerMemory(tensors(0, seed=2))
    ours.map(theirs.export())
    ours.copy(theirs.there([9, 10]), [1, 2]).synchronize()
    for cache, other in zip(ours._rows.tensors, theirs._rows.tensors, strict=True):
        assert torch.equal(cache[1:3], other[9:11])


def test_rows_that_are_not_one_piece_are_copied_all_the_same() -> None:
    sources, caches = ([tensor[:, ::2] for tensor in tensors(0, seed)] for seed in (1, 2))
    copy_rows(Rows(sources, sources[0].device), [4], Rows(caches, caches[0].device), [8])
    for one, other in zip(sources, caches, strict=True):
        assert torch.equal(one[4], other[8])
