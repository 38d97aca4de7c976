"""Live migration of one request as a state machine (§4.2, Figures 6 and 7). Sans-IO: events in, one action out.

The KV cache only grows at its end, so full blocks can be copied while the request keeps decoding at the source. Each
stage copies what was produced during the one before; when little is left the request is frozen (taken out of the
source's batch), the rest is copied, and it goes on at the destination. Every stage first reserves its blocks there.

    start ─ Reserve ─ reserved ─ Copy ─ copied ─┬─ Reserve ... (next stage)
                                                └─ Freeze ─ frozen ─ Reserve ─ reserved ─ Copy ─ copied ─ Commit
    refused / gone / lost at any point ─ Abort(reason)

With method=recompute nothing is copied: the request freezes at once, asks for no block, and its KV cache is computed
again at the destination. That is what live migration is compared with.

The driver (simulated or real) carries out the action and reports what came of it. After Abort the source goes on with
the request if it still has it (`frozen` says whether it has to be put back into the batch), and the destination frees
what it reserved. The machine never looks at a clock and never touches a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class AbortReason(StrEnum):
    """Why a migration ended without moving its request."""

    no_memory = "no_memory"  # the destination refused to reserve
    finished = "finished"  # the request ended at the source meanwhile
    preempted = "preempted"  # the source preempted it meanwhile
    source_lost = "source_lost"
    destination_lost = "destination_lost"


@dataclass(slots=True)
class Reserve:
    """Ask the destination for `blocks` more blocks."""

    blocks: int


@dataclass(slots=True)
class Copy:
    """Copy `blocks` blocks from `first_block` of the request's table on; `last` if the request is frozen."""

    first_block: int
    blocks: int
    last: bool


@dataclass(slots=True)
class Freeze:
    """Take the request out of the source's batch at the next step boundary."""


@dataclass(slots=True)
class Commit:
    """The destination owns the request now; the source frees its blocks. `recompute`: its KV cache stays behind."""

    recompute: bool = False


@dataclass(slots=True)
class Abort:
    """Give up: the destination frees its reservation, the source keeps the request if it still exists."""

    reason: AbortReason


Action = Reserve | Copy | Freeze | Commit | Abort


class State(StrEnum):
    """What the machine waits for."""

    new = "new"
    reserving = "reserving"
    copying = "copying"
    freezing = "freezing"
    committed = "committed"
    aborted = "aborted"


class ProtocolError(RuntimeError):
    """An event came in a state that cannot have it: a defect of the driver."""


class Migration:
    """One request on its way from a source to a destination.

    `max_stages` stages at most, the last one with the request frozen; `last_stage_max_blocks`: freeze as soon as no
    more than this many blocks are left (0: only when the stages are used up). `recompute`: nothing is copied.
    """

    def __init__(self, *, max_stages: int, last_stage_max_blocks: int, recompute: bool = False) -> None:
        self._max_stages = max_stages
        self._last_stage_max_blocks = last_stage_max_blocks
        self._recompute = recompute
        self._pending_blocks = 0
        self.state = State.new
        self.frozen = False
        self.stages = 0
        self.copied_blocks = 0
        self.reserved_blocks = 0

    @property
    def ended(self) -> bool:
        """True once committed or aborted."""
        return self.state in (State.committed, State.aborted)

    def start(self, blocks: int) -> Action:
        """Begin with a request that holds `blocks` blocks; the last of them is still being written."""
        self._expect(State.new)
        return self._next_stage(blocks)

    def reserved(self) -> Action:
        """The destination has set the blocks of this stage aside."""
        self._expect(State.reserving)
        self.reserved_blocks += self._pending_blocks
        self.state = State.copying
        return Copy(self.copied_blocks, self._pending_blocks, last=self.frozen)

    def refused(self) -> Action:
        """The destination has no room for this stage."""
        self._expect(State.reserving)
        return self._abort(AbortReason.no_memory)

    def copied(self, blocks: int) -> Action:
        """The blocks of this stage have arrived; the request, still at the source, holds `blocks` blocks by now."""
        self._expect(State.copying)
        self.copied_blocks += self._pending_blocks
        self.stages += 1
        if self.frozen:
            self.state = State.committed
            return Commit(self._recompute)
        return self._next_stage(blocks)

    def froze(self, blocks: int) -> Action:
        """The request has left the source's batch with `blocks` blocks."""
        self._expect(State.freezing)
        self.frozen = True
        return self._reserve(0 if self._recompute else blocks - self.copied_blocks)

    def gone(self, reason: AbortReason) -> Action:
        """The request, or one side, is not there any more; possible in every state before the end."""
        if self.ended:
            raise ProtocolError(f"the migration has already ended as {self.state}")
        return self._abort(reason)

    def _next_stage(self, blocks: int) -> Action:
        left = blocks - self.copied_blocks
        full = left - 1  # the last block is still being written while the request decodes
        little = full <= 0 or left <= self._last_stage_max_blocks
        if little or self._recompute or self.stages + 1 >= self._max_stages:
            self.state = State.freezing
            return Freeze()
        return self._reserve(full)

    def _reserve(self, blocks: int) -> Action:
        self._pending_blocks = blocks
        self.state = State.reserving
        return Reserve(blocks)

    def _abort(self, reason: AbortReason) -> Action:
        self.state = State.aborted
        return Abort(reason)

    def _expect(self, state: State) -> None:
        if self.state is not state:
            raise ProtocolError(f"expected the migration to be {state}, it is {self.state}")
