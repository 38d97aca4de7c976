"""Blocks from the GPU of one process to that of another through shared memory that both have pinned."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU here", allow_module_level=True)

from llumnix.engines.vllm import carriers, segments  # noqa: E402

SHARED = carriers.CARRIERS["shared_memory"]
GPU = torch.device("cuda:0")


def blocks(seed: int, layers: int = 4) -> Any:
    generator = torch.Generator(device=GPU).manual_seed(seed)
    return torch.randn((layers, 8, 16, 64), generator=generator, dtype=torch.float32, device=GPU)


def source(pipe: Connection) -> None:
    """Pack what it is told to; give back the parcel before."""
    content = None
    while (seed := pipe.recv()) is not None:
        carriers.discard([content])
        content = SHARED.pack(blocks(seed))
        assert all(segment.pinned for segment in carriers._pool._lent.values())
        pipe.send(content)


def test_blocks_of_another_process_arrive_through_one_pinned_segment() -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=source, args=(theirs,), daemon=True)
    process.start()
    paths = set()
    for seed in range(20):
        ours.send(seed)
        content = ours.recv()
        paths.add(content.path)
        assert torch.equal(SHARED.unpack(content, GPU), blocks(seed))
    assert [carriers._mapped._segments[path].pinned for path in paths] == [True]
    ours.send(99)
    ours.recv()
    with pytest.raises(ValueError, match="does not hold this parcel"):
        SHARED.unpack(content, GPU)
    ours.send(None)
    process.join(30)
    assert process.exitcode == 0
    carriers.close()


def test_a_process_reads_its_own_segments() -> None:
    """As a profile does, which times a copy from an engine to itself: the memory is pinned at two addresses."""
    content = SHARED.pack(blocks(5))
    assert torch.equal(SHARED.unpack(content, GPU), blocks(5))
    carriers.discard([content])
    carriers.close()


def test_memory_that_cannot_be_pinned_harms_nothing_after_it() -> None:
    assert not segments._pin(8, 4096, GPU)  # no memory of ours
    assert torch.ones(3, device=GPU).sum().item() == 3
