"""How the KV blocks of one rank get from one worker process into another. Runs inside the workers.

A carrier is a pair of functions: `pack` turns gathered blocks into a parcel's content, `unpack` turns that into a
tensor again, in another process. What comes between is the cluster's business: it moves parcels as opaque values.

inline          the bytes are in the parcel; goes anywhere (through Ray's object store between nodes)
shared_memory   the bytes are in a file in memory; the parcel names it; within a node
cuda_ipc        nothing is packed: the destination reads the source's GPU memory (peer_memory.py); within a node
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llumnix.engines.vllm import versions

torch: Any = versions.lookup("torch")

CUDA_IPC = "cuda_ipc"
_PREFIX = "llumnix-kv"
_counter = itertools.count()


@dataclass(frozen=True, slots=True)
class Carrier:
    """How blocks travel."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Bytes:
    """Blocks in the parcel itself: shape and dtype of the tensor, and its bytes."""

    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class InFile:
    """Blocks in a file of memory, which the reader removes."""

    shape: tuple[int, ...]
    dtype: str
    path: str


def _pack_inline(blocks: Any) -> Bytes:
    return Bytes(tuple(blocks.shape), _dtype_name(blocks), _bytes_of(blocks))


def _unpack_inline(content: Bytes) -> Any:
    # Bytes that come out of an object store are read-only; the copy is what makes them a tensor's own.
    return _tensor(content.data.copy(), content.shape, content.dtype)


def _pack_shared(blocks: Any) -> InFile:
    data = _bytes_of(blocks)
    path = memory_directory() / f"{_PREFIX}-{os.getpid()}-{next(_counter)}"
    with path.open("wb") as file:
        file.write(data.data)
    return InFile(tuple(blocks.shape), _dtype_name(blocks), str(path))


def _unpack_shared(content: InFile) -> Any:
    path = Path(content.path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        data = np.frombuffer(view, dtype=np.uint8).copy()
    path.unlink()
    return _tensor(data, content.shape, content.dtype)


CARRIERS: dict[str, Carrier] = {
    "inline": Carrier(_pack_inline, _unpack_inline),
    "shared_memory": Carrier(_pack_shared, _unpack_shared),
}


def discard(contents: Iterable[Any]) -> None:
    """Remove what parcels that nobody will read have left behind."""
    for content in contents:
        if isinstance(content, InFile):
            Path(content.path).unlink(missing_ok=True)


def sweep() -> list[str]:
    """Remove files that processes which are dead by now have left behind; return their names."""
    removed = []
    for path in memory_directory().glob(f"{_PREFIX}-*-*"):
        process = path.name.split("-")[2]
        if process.isdigit() and not _alive(int(process)):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


def memory_directory() -> Path:
    """Return a directory whose files are memory; the one for temporary files where there is none."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


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


def _bytes_of(tensor: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes of a contiguous tensor, on the host; numpy has no bfloat16 or float8, so bytes it is."""
    flat = tensor.reshape(-1).view(torch.uint8)
    if tensor.device.type == "cpu":
        return np.asarray(flat.numpy())
    pinned = torch.empty(flat.shape, dtype=torch.uint8, pin_memory=True)
    pinned.copy_(flat, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return np.asarray(pinned.numpy())


def _tensor(data: np.ndarray[Any, np.dtype[np.uint8]], shape: tuple[int, ...], dtype: str) -> Any:
    if data.size != math.prod(shape) * getattr(torch, dtype).itemsize:
        raise ValueError(f"a parcel holds {data.size} bytes, which is not a {dtype} tensor of shape {shape}")
    return torch.from_numpy(data).view(getattr(torch, dtype)).reshape(shape)
