"""A Triton kernel that copies rows of many tensors in one launch and leaves most of the GPU to others.

Loaded where CUDA is. A copy of KV blocks from another GPU is bound by the link between them, so that a few of the
hundred-odd multiprocessors saturate it; a kernel on all of them would only make the decode steps beside it wait.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

PROGRAMS = 16
"""Multiprocessors that a copy takes at most."""
CHUNK_WORDS = 4096
"""Words of 8 bytes that a program moves at a time."""


def copy(sources: Any, source_rows: Any, targets: Any, rows: Any, row_words: int) -> None:
    """Copy row source_rows[i] of each source into row rows[i] of its target, on the current stream.

    `sources` and `targets` hold the addresses of tensors whose rows are `row_words` words of 8 bytes, one after the
    other; addresses and row sizes are multiples of 16 bytes. All arguments are tensors of int64 on the device.
    """
    sizes = row_words, len(rows), len(targets)
    _kernel[(PROGRAMS,)](sources, source_rows, targets, rows, *sizes, CHUNK=CHUNK_WORDS, num_warps=8)


# Triton reads annotations as part of its language, and knows none but that of constants.
def _copy_rows(  # type: ignore[no-untyped-def]
    sources,
    source_rows,
    targets,
    rows,
    row_words,
    row_count,
    layer_count,
    CHUNK: tl.constexpr,  # noqa: N803
):
    chunks = tl.cdiv(row_words, CHUNK)
    for item in range(tl.program_id(0), layer_count * row_count * chunks, tl.num_programs(0)):
        row = item // chunks % row_count
        layer = item // chunks // row_count
        word = item % chunks * CHUNK + tl.arange(0, CHUNK)
        inside = word < row_words
        source = tl.multiple_of(tl.load(sources + layer), 16).to(tl.pointer_type(tl.int64))
        target = tl.multiple_of(tl.load(targets + layer), 16).to(tl.pointer_type(tl.int64))
        words = tl.load(source + tl.load(source_rows + row) * row_words + word, mask=inside)
        tl.store(target + tl.load(rows + row) * row_words + word, words, mask=inside)


# Specialising on these would compile again for every other number of blocks.
_kernel: Any = triton.jit(_copy_rows, do_not_specialize=["row_count", "layer_count"])
