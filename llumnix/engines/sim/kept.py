"""What is left of the KV cache of preempted requests: vLLM V1 keeps freed blocks findable until they are used again.

Free blocks form a queue. Blocks are taken at its head; those that a request gives back go to its end, the last of the
request first, so that what is taken first is the end of the sequence and what is left is a prefix of it. How much is
left therefore follows from two counts, where in the queue the request's blocks are and how far the queue was used up.
"""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.engines.sim.request import SimRequest


@dataclass(slots=True)
class _Kept:
    end: int  # blocks that had been put into the queue once the request's were
    blocks: int
    full_blocks: int  # of them, those whose tokens had all been computed: only these can be found again


class KeptBlocks:
    """Positions of the blocks of preempted requests in the queue of free blocks."""

    __slots__ = ("_kept", "_queued")

    def __init__(self, free_blocks: int) -> None:
        self._queued = free_blocks  # ever put into the queue, less those that were found again
        self._kept: dict[SimRequest, _Kept] = {}

    def give(self, blocks: int) -> None:
        """Put blocks into the queue that nobody will look for."""
        self._queued += blocks

    def keep(self, request: SimRequest, blocks: int, computed_tokens: int, block_size_tokens: int) -> None:
        """Put the blocks of a preempted request into the queue, `computed_tokens` of whose tokens have their KV."""
        self._queued += blocks
        self._kept[request] = _Kept(self._queued, blocks, computed_tokens // block_size_tokens)

    def left(self, request: SimRequest, free_blocks: int) -> int:
        """Return how many blocks at the start of a request are still there when `free_blocks` are free."""
        kept = self._kept.get(request)
        if kept is None:
            return 0
        taken = self._queued - free_blocks
        return max(0, min(kept.blocks, kept.end - taken, kept.full_blocks))

    def find(self, request: SimRequest, blocks: int) -> None:
        """Take the first `blocks` blocks of a request, which are still there, out of the queue, and forget the rest."""
        kept = self._kept.pop(request, None)
        if kept is None or not blocks:
            return
        self._queued -= blocks
        for other in self._kept.values():
            if other.end > kept.end:
                other.end -= blocks
