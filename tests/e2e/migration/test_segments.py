"""Shared memory that is used again: never by two parcels at a time, never unnoticed, and not left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from llumnix.engines.vllm.segments import Pool, Segment

CPU = SimpleNamespace(type="cpu")
SIZE = 5000

PACKS = """
import sys, time, torch
from pathlib import Path
from llumnix.engines.vllm import carriers
carriers.memory_directory = lambda: Path(sys.argv[1])
content = carriers.CARRIERS["shared_memory"].pack(torch.full((2, 3, 4), 7.0))
print(content.path, content.number, flush=True)
sys.stdin.read()
"""


def pool(directory: Path, keep_bytes: int = 1 << 20) -> Pool:
    from llumnix.engines.vllm.segments import Pool

    return Pool(lambda: directory, keep_bytes)


def taken(pool: Pool, fill: int, size: int = SIZE) -> tuple[Segment, int]:
    segment, number = pool.take(size, CPU)
    segment.data[:size] = fill
    return segment, number


def files(directory: Path) -> int:
    return len(list(directory.iterdir()))


def test_a_segment_is_used_again_once_it_was_given_back(tmp_path: Path) -> None:
    ours = pool(tmp_path)
    first, number = taken(ours, 1)
    second, _ = taken(ours, 2)
    assert second.path != first.path
    assert first.data[:SIZE].unique().tolist() == [1]
    ours.give_back(str(first.path), number)
    third, again = taken(ours, 3)
    assert (third.path, files(tmp_path)) == (first.path, 2)
    assert again != number


def test_giving_back_twice_does_not_free_the_next_parcel(tmp_path: Path) -> None:
    ours = pool(tmp_path)
    first, number = taken(ours, 1)
    ours.give_back(str(first.path), number)
    second, _ = taken(ours, 2)
    ours.give_back(str(first.path), number)
    third, _ = taken(ours, 3)
    assert first.path == second.path != third.path


def test_what_another_process_lent_is_not_ours_to_give_back(tmp_path: Path) -> None:
    ours, theirs = pool(tmp_path), pool(tmp_path)
    segment, number = taken(ours, 1)
    theirs.give_back(str(segment.path), number)
    assert taken(ours, 2)[0].path != segment.path
    assert segment.number[0] == number


def test_the_smallest_segment_that_fits_is_taken(tmp_path: Path) -> None:
    ours = pool(tmp_path)
    lent = [taken(ours, 1, size) for size in (100_000, 5_000, 30_000)]
    for segment, number in lent:
        ours.give_back(str(segment.path), number)
    assert ours.take(20_000, CPU)[0] is lent[2][0]
    assert ours.take(20_000, CPU)[0] is lent[0][0]
    assert ours.take(20_000, CPU)[0].path.exists()
    assert files(tmp_path) == 4


@pytest.mark.parametrize(
    ("size", "capacity"), [(1, 4096), (5000, 8192), (16 << 20, 16 << 20), ((16 << 20) + 1, 32 << 20)]
)
def test_capacities(tmp_path: Path, size: int, capacity: int) -> None:
    from llumnix.engines.vllm.segments import HEADER_BYTES

    assert pool(tmp_path).take(size, CPU)[0].capacity == max(HEADER_BYTES, capacity)


def test_what_is_kept_has_an_end(tmp_path: Path) -> None:
    ours = pool(tmp_path, keep_bytes=3 * 8192)
    lent = [taken(ours, 1) for _ in range(8)]
    assert files(tmp_path) == 8
    for segment, number in lent:
        ours.give_back(str(segment.path), number)
        assert sum(idle.capacity for idle in ours._idle) <= 3 * 8192
    assert files(tmp_path) == 3
    big, number = taken(ours, 1, 100_000)
    ours.give_back(str(big.path), number)
    assert not big.path.exists()


def test_what_lies_idle_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = pool(tmp_path)
    segment, number = taken(ours, 1)
    allocate = os.posix_fallocate

    def full(descriptor: int, offset: int, size: int) -> None:
        if files(tmp_path) > 1:
            raise OSError(28, "No space left on device")
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        ours.take(SIZE, CPU)
    assert files(tmp_path) == 1
    ours.give_back(str(segment.path), number)
    assert ours.take(100_000, CPU)[0].path.exists()
    assert files(tmp_path) == 1


def test_a_segment_whose_file_was_removed_is_not_used_again(tmp_path: Path) -> None:
    """Containers that share memory but not process numbers sweep each other's files."""
    ours = pool(tmp_path)
    segment, number = taken(ours, 1)
    segment.path.unlink()
    ours.give_back(str(segment.path), number)
    assert ours.take(SIZE, CPU)[0].path.exists()


def test_a_reader_maps_a_segment_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llumnix.engines.vllm import segments

    ours, reader, opened = pool(tmp_path), segments.Mapped(), Counter[str]()
    map_it = segments.Mapped._map

    def counted(self: Any, path: str, device: Any) -> Segment:
        opened[path] += 1
        return map_it(self, path, device)

    monkeypatch.setattr(segments.Mapped, "_map", counted)
    for turn in range(5):
        lent = [taken(ours, 10 * turn + k) for k in range(2)]
        for k, (segment, number) in enumerate(lent):
            read = reader.read(str(segment.path), number, lambda data: data[:SIZE].clone(), CPU)
            assert read.unique().tolist() == [10 * turn + k]
            ours.give_back(str(segment.path), number)
    assert list(opened.values()) == [1, 1]


def test_a_reader_forgets_what_its_source_has_removed(tmp_path: Path) -> None:
    from llumnix.engines.vllm.segments import Mapped

    ours, reader = pool(tmp_path), Mapped()
    for _ in range(3):
        segment, number = taken(ours, 1)
        reader.read(str(segment.path), number, lambda data: None, CPU)
        assert list(reader._segments) == [str(segment.path)]
        ours.give_back(str(segment.path), number)
        ours.close()
    path = str(segment.path)
    del segment
    assert Path("/proc/self/maps").read_text().count(path) == 1  # the reader's; the source's mapping has gone
    reader.close()
    assert path not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("again", [False, True])
def test_who_reads_too_late_is_told(tmp_path: Path, again: bool) -> None:
    from llumnix.engines.vllm.segments import Mapped

    ours = pool(tmp_path)
    segment, number = taken(ours, 1)
    ours.give_back(str(segment.path), number)
    if again:
        assert taken(ours, 2)[0] is segment
    with pytest.raises(ValueError, match="does not hold this parcel any more"):
        Mapped().read(str(segment.path), number, lambda data: data.clone(), CPU)


def test_a_source_that_goes_on_in_the_middle_of_a_copy_is_noticed(tmp_path: Path) -> None:
    from llumnix.engines.vllm.segments import Mapped

    ours = pool(tmp_path)
    segment, number = taken(ours, 1)

    def copy(data: Any) -> Any:
        ours.give_back(str(segment.path), number)
        taken(ours, 2)
        return data.clone()

    with pytest.raises(ValueError, match="does not hold this parcel any more"):
        Mapped().read(str(segment.path), number, copy, CPU)


@pytest.mark.parametrize("code", [0, 1])
def test_memory_that_cannot_be_pinned_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    import torch

    from llumnix.engines.vllm.segments import HEADER_BYTES, Segment

    calls: list[tuple[Any, ...]] = []

    def refused(*_: Any, **__: Any) -> None:
        calls.append(("kernel",))
        raise RuntimeError("CUDA error: the one of before")

    runtime = SimpleNamespace(
        cudaHostRegister=lambda *arguments: calls.append(arguments) or code,
        cudaHostUnregister=lambda *arguments: calls.append(arguments) or 0,
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch, "ones", refused)
    segment = Segment(tmp_path / "one", SimpleNamespace(type="cuda"), 8192)
    address = segment.data.data_ptr() - HEADER_BYTES
    segment.close()
    segment.close()
    registered = (address, HEADER_BYTES + 8192, 1)
    assert calls == [registered, ("kernel",) if code else (address,)]


def packed_elsewhere(directory: Path) -> tuple[subprocess.Popen[str], Any]:
    """A process that has packed a parcel, and the parcel."""
    from llumnix.engines.vllm.carriers import InSegment

    process = subprocess.Popen(
        [sys.executable, "-c", PACKS, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    path, number = process.stdout.readline().split()
    return process, InSegment((2, 3, 4), "float32", path, int(number))


def test_a_source_that_dies_between_packing_and_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has packed is whole and can still be read; it is there until somebody sweeps."""
    import torch

    from llumnix.engines.vllm import carriers

    monkeypatch.setattr(carriers, "memory_directory", lambda: tmp_path)
    unpack = carriers.CARRIERS["shared_memory"].unpack
    read, unread = packed_elsewhere(tmp_path), packed_elsewhere(tmp_path)
    try:
        assert torch.equal(unpack(read[1], torch.device("cpu")), torch.full((2, 3, 4), 7.0))
        assert carriers.sweep() == []
    finally:
        for process, _ in (read, unread):
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert torch.equal(unpack(read[1], torch.device("cpu")), torch.full((2, 3, 4), 7.0))
    assert sorted(carriers.sweep()) == sorted(Path(content.path).name for _, content in (read, unread))
    with pytest.raises(FileNotFoundError):
        unpack(unread[1], torch.device("cpu"))
    assert files(tmp_path) == 0


def test_a_process_that_ends_removes_its_memory(tmp_path: Path) -> None:
    process, content = packed_elsewhere(tmp_path)
    assert Path(content.path).exists()
    process.communicate()
    assert process.returncode == 0
    assert files(tmp_path) == 0


def test_the_files_of_dead_processes_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llumnix.engines.vllm import carriers

    monkeypatch.setattr(carriers, "memory_directory", lambda: tmp_path)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    for process in (int(dead.stdout), os.getpid()):
        (tmp_path / f"llumnix-kv-{process}-key-0").write_bytes(b"x")
    assert carriers.sweep() == [f"llumnix-kv-{int(dead.stdout)}-key-0"]
    assert files(tmp_path) == 1
