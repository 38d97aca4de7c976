"""KV blocks straight out of the GPU memory of another process into this one's (CUDA IPC); the host sees none of them.

The source exports its KV tensors once and from then on only names blocks. The destination maps these tensors once per
source and copies on a stream of its own, so that both sides go on decoding. Runs inside the workers; needs CUDA.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from llumnix.engines.vllm import versions

torch: Any = versions.lookup("torch")

MAPPED_SOURCES = 64
"""Sources whose memory stays mapped; the one that was used longest ago is unmapped for the next."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One exported KV tensor: how CUDA names its memory, and where in it the tensor lies. Picklable."""

    handle: tuple[Any, ...]  # of the storage, without the device: the other side may count devices differently
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True, slots=True)
class Export:
    """The KV tensors of one rank; `key` is unique to the process that exported them."""

    key: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class BlocksThere:
    """A parcel's content: rows of the exported tensors of `key`."""

    key: str
    rows: tuple[int, ...]


_in_this_process: WeakValueDictionary[str, PeerMemory] = WeakValueDictionary()
"""CUDA maps no memory of a process into itself; engines that share one find each other here."""


class Rows:
    """KV tensors of one rank as rows, with what a copy has to know of them worked out beforehand."""

    def __init__(self, tensors: Sequence[Any], device: Any) -> None:
        self.tensors = list(tensors)
        self.device = device
        first = self.tensors[0]
        self.strides = first.stride()
        self.row_words = first.stride(0) * first.element_size() // 8
        self.whole = all(map(_rows_are_whole, self.tensors))
        self.addresses = _on_device([tensor.data_ptr() for tensor in self.tensors], device)


class PeerMemory:
    """KV tensors of one rank, one row per block, seen as the source and as the destination of copies."""

    def __init__(self, caches: Sequence[Any]) -> None:
        self._device = caches[0].device
        self._rows = Rows(caches, self._device)
        self._key = uuid.uuid4().hex
        self._stream = torch.cuda.Stream(device=self._device)
        self._mapped: OrderedDict[str, Rows] = OrderedDict()
        _in_this_process[self._key] = self
        copy_rows(self._rows, [0], self._rows, [0])  # compiles; block 0 is nobody's

    def export(self) -> Export:
        """Return what other processes need to map the tensors; RuntimeError where this memory cannot be shared."""
        return Export(self._key, tuple(_exported(cache) for cache in self._rows.tensors))

    def there(self, rows: Sequence[int]) -> BlocksThere:
        """Name blocks of this rank for a parcel."""
        return BlocksThere(self._key, tuple(rows))

    def map(self, export: Export) -> None:
        """Make the tensors of a source readable here; RuntimeError if this GPU cannot reach that memory."""
        if export.key in self._mapped:
            self._mapped.move_to_end(export.key)
            return
        here = _in_this_process.get(export.key)
        tensors = here._rows.tensors if here else [_imported(layer, self._device) for layer in export.layers]
        self._mapped[export.key] = Rows(tensors, self._device)
        if len(self._mapped) > MAPPED_SOURCES:
            torch.cuda.synchronize(self._device)  # nothing may be reading what is unmapped now
            self._mapped.popitem(last=False)

    def copy(self, blocks: BlocksThere, rows: Sequence[int]) -> Any:
        """Begin to copy blocks of a mapped source into `rows`; return the CUDA event of its completion.

        The source's blocks must be final and stay as they are until then. Steps already begun come first, because
        they may still use these rows for a request that has left them.
        """
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            copy_rows(self._mapped[blocks.key], blocks.rows, self._rows, rows)
            event = torch.cuda.Event()
            event.record(stream)
        return event

    def settle(self) -> None:
        """Let steps from now on wait, on the GPU, for all copies begun so far."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def copy_rows(source: Rows, source_rows: Sequence[int], target: Rows, rows: Sequence[int]) -> None:
    """Copy rows of each source tensor into rows of its target, on the current stream."""
    there, here = _on_device([*source_rows, *rows], target.device).split(len(rows))
    if source.whole and target.whole and source.strides == target.strides:
        versions.lookup("llumnix.engines.vllm.row_copy.copy")(
            source.addresses, there, target.addresses, here, target.row_words
        )
        return
    for tensor, cache in zip(source.tensors, target.tensors, strict=True):
        cache.index_copy_(0, here, tensor.index_select(0, there))


def _rows_are_whole(cache: Any) -> bool:
    """True if each row is one piece of memory, in whatever order its elements are, and aligned to 16 bytes."""
    row_bytes = cache.stride(0) * cache.element_size()
    return bool(cache.stride(0) == cache[0].numel() and row_bytes % 16 == 0 and cache.data_ptr() % 16 == 0)


def _on_device(numbers: Sequence[int], device: Any) -> Any:
    """Return numbers as a tensor there, from pinned memory: from any other, the copy would wait for steps under way."""
    return torch.tensor(numbers, dtype=torch.long, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _exported(cache: Any) -> Layer:
    device, *handle = cache.untyped_storage()._share_cuda_()
    del device
    return Layer(tuple(handle), cache.storage_offset(), tuple(cache.shape), cache.stride(), cache.dtype)


def _imported(layer: Layer, device: Any) -> Any:
    storage = torch.UntypedStorage._new_shared_cuda(device.index or 0, *layer.handle)
    empty = torch.empty(0, dtype=layer.dtype, device=device)
    return empty.set_(storage, layer.offset, layer.shape, layer.strides)
