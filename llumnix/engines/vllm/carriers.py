"""How the KV blocks of one rank get from one worker process into another. Runs inside the workers.

A carrier is a pair of functions: `pack` turns gathered blocks into a parcel's content, `unpack` turns that into a
tensor again, in another process. What comes between is the cluster's business: it moves parcels as opaque values.

inline          the bytes are in the parcel; goes anywhere (through Ray's object store between nodes)
shared_memory   the bytes are in a segment of memory that both map (segments.py); the parcel names it; within a node
cuda_ipc        nothing is packed: the destination reads the source's GPU memory (peer_memory.py); within a node
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llumnix.engines.vllm import segments, versions

torch: Any = versions.lookup("torch")

CUDA_IPC = "cuda_ipc"


@dataclass(frozen=True, slots=True)
class Carrier:
    """How blocks travel: `pack(blocks)` makes a parcel's content, `unpack(content, device)` a tensor on the device."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Bytes:
    """Blocks in the parcel itself: shape and dtype of the tensor, and its bytes."""

    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class InSegment:
    """Blocks in shared memory, as long as that holds this number; to be given back."""

    shape: tuple[int, ...]
    dtype: str
    path: str
    number: int


def memory_directory() -> Path:
    """Return a directory whose files are memory; the one for temporary files where there is none."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


_pool = segments.Pool(lambda: memory_directory())
_mapped = segments.Mapped()


def _pack_inline(blocks: Any) -> Bytes:
    flat = _flat(blocks)
    if flat.device.type != "cpu":
        pinned = torch.empty(flat.shape, dtype=torch.uint8, pin_memory=True)
        _copy(flat, pinned, flat.device)
        flat = pinned
    return Bytes(tuple(blocks.shape), _dtype_name(blocks), np.asarray(flat.numpy()))


def _unpack_inline(content: Bytes, device: Any) -> Any:
    # Bytes that come out of an object store are read-only; the copy is what makes them a tensor's own.
    data = torch.from_numpy(content.data.copy())
    return _shaped(data[: _size(content, data.numel())], content).to(device)


def _pack_shared(blocks: Any) -> InSegment:
    flat = _flat(blocks)
    segment, number = _pool.take(flat.numel(), flat.device)
    try:
        _copy(flat, segment.data[: flat.numel()], flat.device)
    except BaseException:
        _pool.give_back(str(segment.path), number)
        raise
    return InSegment(tuple(blocks.shape), _dtype_name(blocks), str(segment.path), number)


def _unpack_shared(content: InSegment, device: Any) -> Any:
    def arrive(data: Any) -> Any:
        size = _size(content, data.numel(), padded=True)
        if device.type == "cpu":  # numpy asks for large pages, which are faulted in several times faster
            return torch.from_numpy(data[:size].numpy().copy())
        arrived = torch.empty(size, dtype=torch.uint8, device=device)
        _copy(data[:size], arrived, device)
        return arrived

    return _shaped(_mapped.read(content.path, content.number, arrive, device), content)


CARRIERS: dict[str, Carrier] = {
    "inline": Carrier(_pack_inline, _unpack_inline),
    "shared_memory": Carrier(_pack_shared, _unpack_shared),
}


def lent(contents: Iterable[Any]) -> list[InSegment]:
    """Return those contents that have to be given back, to `discard` in the process that packed them."""
    return [content for content in contents if isinstance(content, InSegment)]


def discard(contents: Iterable[Any]) -> None:
    """Take back what parcels hold that nobody will read any more; what another process packed is ignored."""
    for content in lent(contents):
        _pool.give_back(content.path, content.number)


def close() -> None:
    """Free the shared memory in which there is no parcel, this process's and that of others as far as it is here."""
    _pool.close()
    _mapped.close()


def sweep() -> list[str]:
    """Remove files that processes which are dead by now have left behind; return their names."""
    removed = []
    for path in memory_directory().glob(f"{segments.PREFIX}-*-*"):
        process = path.name.split("-")[2]
        if process.isdigit() and not _alive(int(process)):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _dtype_name(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _flat(tensor: Any) -> Any:
    """Return a contiguous tensor as bytes; numpy has no bfloat16 or float8."""
    return tensor.reshape(-1).view(torch.uint8)


def _copy(source: Any, target: Any, device: Any) -> None:
    """Copy between host and device, as fast as the host's memory allows, and wait for that and nothing else."""
    target.copy_(source, non_blocking=True)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _size(content: Bytes | InSegment, there: int, *, padded: bool = False) -> int:
    """Return how many bytes the blocks have. ValueError if others are there; if `padded`, more may be."""
    size = math.prod(content.shape) * getattr(torch, content.dtype).itemsize
    if size > there or (size < there and not padded):
        raise ValueError(
            f"a parcel holds {there} bytes, which is not a {content.dtype} tensor of shape {content.shape}"
        )
    return int(size)


def _shaped(data: Any, content: Bytes | InSegment) -> Any:
    return data.view(getattr(torch, content.dtype)).reshape(content.shape)
