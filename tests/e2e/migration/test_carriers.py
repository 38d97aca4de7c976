"""Blocks come out of a parcel as they went in, in another process too, and leave nothing behind."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory for shared memory, empty and this test's own."""
    from llumnix.engines.vllm import carriers

    monkeypatch.setattr(carriers, "memory_directory", lambda: tmp_path)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8", "float8_e4m3fn"])
@pytest.mark.parametrize("name", ["inline", "shared_memory"])
def test_blocks_survive_the_way(memory: Path, name: str, dtype: str) -> None:
    import torch

    from llumnix.engines.vllm.carriers import CARRIERS

    blocks = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(torch.float32).to(getattr(torch, dtype))
    content = pickle.loads(pickle.dumps(CARRIERS[name].pack(blocks)))
    again = CARRIERS[name].unpack(content)
    assert again.dtype == blocks.dtype
    assert torch.equal(again.view(torch.uint8), blocks.view(torch.uint8))


def test_a_parcel_that_is_cut_short_is_noticed(memory: Path) -> None:
    import torch

    from llumnix.engines.vllm.carriers import CARRIERS

    content = CARRIERS["shared_memory"].pack(torch.zeros(2, 3, 4))
    path = Path(content.path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="holds 92 bytes"):
        CARRIERS["shared_memory"].unpack(content)


def test_what_nobody_reads_is_removed(memory: Path) -> None:
    import torch

    from llumnix.engines.vllm import carriers

    contents = [carriers.CARRIERS[name].pack(torch.zeros(1, 1, 8)) for name in ("inline", "shared_memory")]
    assert len(list(memory.iterdir())) == 1
    carriers.discard(contents)
    carriers.discard(contents)


def test_the_files_of_dead_processes_are_swept(memory: Path) -> None:
    from llumnix.engines.vllm import carriers

    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    for process in (int(dead.stdout), os.getpid()):
        (memory / f"llumnix-kv-{process}-0").write_bytes(b"x")
    assert carriers.sweep() == [f"llumnix-kv-{int(dead.stdout)}-0"]
    (memory / f"llumnix-kv-{os.getpid()}-0").unlink()
