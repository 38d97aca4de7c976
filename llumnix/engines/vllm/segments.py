"""Memory that processes of a node share and use again: a source owns segments, and a reader maps each of them once.

A file of its own for every parcel costs page faults at both ends, and copies that CUDA has to make through memory that
it knows; a segment is faulted in, and pinned, once per process. In exchange it can hold another parcel by the time that
somebody late reads it. So every parcel has a number, which stands in the segment while the parcel does, and a reader
looks at it before and after its copy.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import os
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np

from llumnix.engines.vllm import versions

torch: Any = versions.lookup("torch")
log = logging.getLogger(__name__)

PREFIX = "llumnix-kv"
KEEP_BYTES = 1 << 30
"""What a process keeps at most of segments that hold no parcel."""
HEADER_BYTES = mmap.PAGESIZE
_GRAIN_BYTES = 16 << 20  # as much as a piece of a live copy, so that all pieces fit the same segments
_VOID = 0
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every GPU that this process uses


class Segment:
    """A file of memory, mapped into this process and, beside a GPU, pinned if that can be."""

    def __init__(self, path: Path, device: Any, new_bytes: int = 0) -> None:
        """Map what is there, or first make a file for `new_bytes` bytes. OSError if there is no memory for it."""
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if new_bytes else 0), 0o600)
        try:
            if new_bytes:  # a file that only claims its size would end the process where memory runs out
                os.posix_fallocate(descriptor, 0, HEADER_BYTES + new_bytes)
            memory = mmap.mmap(descriptor, 0)
        except OSError:
            if new_bytes:
                path.unlink()
            raise
        finally:
            os.close(descriptor)
        self.path = path
        self.number = np.frombuffer(memory, dtype=np.int64, count=1)
        self.data = torch.frombuffer(memory, dtype=torch.uint8, offset=HEADER_BYTES)
        self._address = int(self.data.data_ptr()) - HEADER_BYTES
        self.pinned = device.type == "cuda" and _pin(self._address, len(memory), device)

    @property
    def capacity(self) -> int:
        """Bytes that a parcel in it can have."""
        return int(self.data.numel())

    def close(self) -> None:
        """Let CUDA forget it. It is unmapped when nobody refers to its data any more."""
        if self.pinned:
            torch.cuda.cudart().cudaHostUnregister(self._address)
            self.pinned = False


class Pool:
    """The segments of this process, as the source of parcels."""

    def __init__(self, directory: Callable[[], Path], keep_bytes: int = KEEP_BYTES) -> None:
        self._directory = directory
        self._keep_bytes = keep_bytes
        self._key = uuid.uuid4().hex[:12]  # a process that died may have had the number of this one
        self._files, self._numbers = itertools.count(), itertools.count(_VOID + 1)
        self._lent: dict[tuple[str, int], Segment] = {}
        self._idle: list[Segment] = []  # the longest idle first
        self._lock = threading.Lock()
        Finalize(None, self._unlink, exitpriority=0)  # atexit would not do in a worker that vLLM has started

    def take(self, size: int, device: Any) -> tuple[Segment, int]:
        """Return a segment for a parcel of `size` bytes, and the parcel's number."""
        with self._lock:
            self._drop([segment for segment in self._idle if not segment.path.exists()])
            fitting = [segment for segment in self._idle if segment.capacity >= size]
            segment = min(fitting, key=lambda idle: idle.capacity) if fitting else self._new(size, device)
            if fitting:
                self._idle.remove(segment)
            number = next(self._numbers)
            segment.number[0] = number
            self._lent[str(segment.path), number] = segment
            return segment, number

    def give_back(self, path: str, number: int) -> None:
        """Use a parcel's segment again from now on; nothing happens if it is not this process's, or was given back."""
        with self._lock:
            segment = self._lent.pop((path, number), None)
            if segment is None:
                return
            segment.number[0] = _VOID
            self._idle.append(segment)
            while sum(idle.capacity for idle in self._idle) > self._keep_bytes:
                self._drop(self._idle[:1])

    def close(self) -> None:
        """Remove all segments that hold no parcel."""
        with self._lock:
            self._drop(list(self._idle))

    def _new(self, size: int, device: Any) -> Segment:
        path = self._directory() / f"{PREFIX}-{os.getpid()}-{self._key}-{next(self._files)}"
        try:
            return Segment(path, device, _rounded(size))
        except OSError:
            if not self._idle:
                raise
            self._drop(list(self._idle))  # too small, and perhaps in the way
            return Segment(path, device, _rounded(size))

    def _drop(self, segments: list[Segment]) -> None:
        for segment in segments:
            self._idle.remove(segment)
            segment.path.unlink(missing_ok=True)
            segment.close()

    def _unlink(self) -> None:
        for segment in [*self._idle, *self._lent.values()]:
            segment.path.unlink(missing_ok=True)


class Mapped:
    """The segments of other processes, as their reader."""

    def __init__(self) -> None:
        self._segments: dict[str, Segment] = {}
        self._lock = threading.Lock()

    def read(self, path: str, number: int, copy: Callable[[Any], Any], device: Any) -> Any:
        """Return what `copy` makes of a segment's bytes, as long as the parcel of that number is in it.

        `copy` must be done with the segment when it returns. ValueError if the parcel is not there, or not any more.
        """
        with self._lock:
            segment = self._segments.get(path) or self._map(path, device)
            copied = copy(segment.data) if segment.number[0] == number else None
            if segment.number[0] != number:
                raise ValueError(f"{path} does not hold this parcel any more: its source has given up on it")
            return copied

    def close(self) -> None:
        """Forget all segments; who reads one again maps it again."""
        with self._lock:
            self._forget(list(self._segments))

    def _map(self, path: str, device: Any) -> Segment:
        self._forget([other for other in self._segments if not Path(other).exists()])  # else their memory stays
        segment = self._segments[path] = Segment(Path(path), device)
        return segment

    def _forget(self, paths: list[str]) -> None:
        for path in paths:
            self._segments.pop(path).close()


def _rounded(size: int) -> int:
    """Return the capacity of a segment for `size` bytes: a power of two, above one piece a multiple of its size."""
    if size > _GRAIN_BYTES:
        return -(-size // _GRAIN_BYTES) * _GRAIN_BYTES
    return max(HEADER_BYTES, 1 << (size - 1).bit_length())


def _pin(address: int, size: int, device: Any) -> bool:
    """Make CUDA know memory, so that it copies from and to it by itself; False where that cannot be."""
    error = int(torch.cuda.cudart().cudaHostRegister(address, size, _PORTABLE))
    if error == 0:
        return True
    log.warning("shared memory of %d bytes cannot be pinned (CUDA error %d): copies will be slow", size, error)
    with suppress(RuntimeError):  # CUDA tells the error again to whoever starts the next kernel; let that be this one
        torch.ones(1, device=device)
    return False
