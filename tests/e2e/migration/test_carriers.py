"""Blocks come out of a parcel as they went in, in another process too, and leave nothing behind."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory for shared memory, empty and this test's own."""
    from llumnix.engines.vllm import carriers, segments

    monkeypatch.setattr(carriers, "memory_directory", lambda: tmp_path)
    monkeypatch.setattr(carriers, "_pool", segments.Pool(lambda: tmp_path))
    yield tmp_path
    carriers.close()
    assert list(tmp_path.iterdir()) == []


def cpu() -> Any:
    import torch

    return torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8", "float8_e4m3fn"])
@pytest.mark.parametrize("name", ["inline", "shared_memory"])
def test_blocks_survive_the_way(memory: Path, name: str, dtype: str) -> None:
    import torch

    from llumnix.engines.vllm.carriers import CARRIERS, discard

    blocks = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(torch.float32).to(getattr(torch, dtype))
    content = pickle.loads(pickle.dumps(CARRIERS[name].pack(blocks)))
    again = CARRIERS[name].unpack(content, cpu())
    discard([content])
    assert again.dtype == blocks.dtype
    assert torch.equal(again.view(torch.uint8), blocks.view(torch.uint8))


def test_what_was_unpacked_is_the_readers_own(memory: Path) -> None:
    """The source fills the same segment again while the destination still works with the blocks of before."""
    import torch

    from llumnix.engines.vllm.carriers import CARRIERS, discard

    shared = CARRIERS["shared_memory"]
    first = shared.pack(torch.ones(2, 3, 4))
    blocks = shared.unpack(first, cpu())
    discard([first])
    second = shared.pack(torch.zeros(2, 3, 4))
    assert second.path == first.path
    assert blocks.sum() == 24
    discard([second])


def test_a_parcel_that_is_cut_short_is_noticed(memory: Path) -> None:
    import os

    import torch

    from llumnix.engines.vllm import carriers, segments

    shared = carriers.CARRIERS["shared_memory"]
    content = shared.pack(torch.zeros(2, 3, 4))
    os.truncate(content.path, segments.HEADER_BYTES + 92)
    with pytest.raises(ValueError, match="holds 92 bytes"):
        shared.unpack(content, cpu())
    carriers.discard([content])


def test_what_nobody_reads_is_given_back(memory: Path) -> None:
    import torch

    from llumnix.engines.vllm import carriers

    contents = [carriers.CARRIERS[name].pack(torch.zeros(1, 1, 8)) for name in ("inline", "shared_memory")]
    assert carriers.lent(contents) == contents[1:]
    carriers.close()
    assert len(list(memory.iterdir())) == 1  # a parcel is in it
    carriers.discard(contents)
    carriers.discard(contents)
    carriers.close()
    assert list(memory.iterdir()) == []


def test_a_pack_that_fails_keeps_nothing(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from llumnix.engines.vllm import carriers

    def fails(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(carriers, "_copy", fails)
    with pytest.raises(RuntimeError, match="device"):
        carriers.CARRIERS["shared_memory"].pack(torch.zeros(1, 1, 8))
