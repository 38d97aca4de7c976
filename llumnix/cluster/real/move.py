"""One live migration, driven from the source: carries out what llumnix.migration asks for, on engines and links.

The destination's part of the last stage (reserve, copy, commit) is one message. If no answer comes to it, nobody here
can know whether the request goes on there; the source then lets go of it and the front end asks around.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from typing import Any, Protocol

from llumnix.cluster.real import transport
from llumnix.cluster.real.engine_thread import EngineThread
from llumnix.cluster.real.links import Peer
from llumnix.cluster.real.messages import Accepted, Arrival, Landing, LinkError, MoveOutcome, NoAnswer, Tag
from llumnix.cluster.real.spec import Limits
from llumnix.cluster.real.transport import Distance
from llumnix.engines.base import Departure, Engine, FinalState, MigrationRefused, Parcel
from llumnix.migration import Abort, AbortReason, Action, Commit, Copy, Freeze, Migration, Reserve
from llumnix.policies.migration import MigrationMethod, MigrationPolicy

log = logging.getLogger(__name__)
HAND_OVER_S = 0.002
"""How long an engine's thread holds still, at most, so that the last stage leaves first; a request waits for that."""


class Source(Protocol):
    """What a move needs of the llumlet that it starts from."""

    instance_id: int
    limits: Limits
    place: str
    process: str
    thread: EngineThread
    carriers: tuple[str, ...]
    block_bytes: int
    after_step: list[Callable[[Engine], None]]

    def tag_of(self, request_id: str) -> Tag | None: ...
    def last_token_s(self, request_id: str) -> float | None: ...
    def forget(self, request_id: str) -> None: ...
    def notice(
        self, kind: str, request_id: str | None, detail: str | None = None, instance_id: int | None = None
    ) -> None: ...
    def departed(self, request_id: str, tag: Tag, destination: int, incarnation: str, downtime_s: float) -> None: ...
    def lost_sight(self, request_id: str, tag: Tag, destination: int) -> None: ...


@dataclass(slots=True)
class _Frozen:
    """The request at rest: what is still to be sent, read in the same breath as it was frozen."""

    blocks: int
    parcels: list[Parcel]
    final: FinalState
    last_token_s: float | None


class Move:
    """A request on its way from `source` to the instance behind `peer`."""

    def __init__(self, source: Source, request_id: str, destination: int, peer: Peer, policy: MigrationPolicy) -> None:
        self._source = source
        self._request_id = request_id
        self._destination = destination
        self._peer = peer
        self._recompute = policy.method is MigrationMethod.recompute
        self._machine = Migration(
            max_stages=policy.max_stages,
            last_stage_max_blocks=policy.last_stage_max_blocks,
            recompute=self._recompute,
        )
        self._tag = Tag()
        self._departure: Departure | None = None
        self._accepted: Accepted | None = None
        self._carrier = ""
        self._distance = Distance.network
        self._frozen: _Frozen | None = None
        self._froze_s = 0.0
        self._downtime_s = 0.0
        self._refusal = ""
        self._handing_over = threading.Event()
        self._handed_over = False  # it is, or may be, the destination's: it must not go on here
        self._end_s = time.monotonic() + source.limits.migration_s

    def run(self) -> MoveOutcome:
        """Move the request, or leave it as it was; no error of a migration ends the request."""
        try:
            return self._run()
        except Exception as error:
            log.exception("migration of %s to instance %d failed", self._request_id, self._destination)
            self._refusal = f"{type(error).__name__}: {error}"
            if self._handed_over:  # this engine does not answer, and is ended for that
                return MoveOutcome(False, self._request_id, self._refusal, stages=self._machine.stages)
            return self._abort(AbortReason.destination_lost)

    def _run(self) -> MoveOutcome:
        try:
            begun = self._call(self._begin)
        except MigrationRefused as refused:
            self._source.notice("migrate_refuse", self._request_id, refused.reason)
            return MoveOutcome(False, self._request_id, refused.reason)
        if isinstance(begun, AbortReason):
            return MoveOutcome(False, self._request_id, begun)
        self._source.notice("migrate_start", self._request_id, f"to {self._destination}")
        action: Action | None = self._machine.start(begun)
        outcome = None
        while outcome is None:
            if time.monotonic() > self._end_s and not self._machine.ended:
                action = self._machine.gone(AbortReason.destination_lost)
            match action:
                case Reserve(blocks):
                    action = self._reserve(blocks)
                case Copy(first_block, blocks, last):
                    action = self._copy(first_block, blocks, last)
                case Freeze():
                    action = self._freeze()
                case Commit():
                    outcome = self._commit()
                case Abort(reason):
                    outcome = self._abort(reason)
        return outcome

    # --- steps of the protocol; each returns what the state machine wants next

    def _begin(self, engine: Engine) -> int | AbortReason:
        tag = self._source.tag_of(self._request_id)
        if tag is None:
            return AbortReason.finished
        self._tag = Tag(tag.attempt, tag.hops + 1)
        self._departure = engine.depart(self._request_id)
        return engine.held_blocks(self._request_id)

    def _reserve(self, blocks: int) -> Action:
        try:
            if self._accepted is None:
                reserved = self._reserve_first(blocks)
            elif self._frozen is None:
                reserved = self._peer.extend(self._request_id, self._tag, blocks)
            else:
                return self._land(blocks)
        except LinkError as error:
            return self._unreachable(error)
        if not reserved:
            return self._machine.refused()
        if self._frozen is not None:
            return self._land(0)
        return self._machine.reserved()

    def _reserve_first(self, blocks: int) -> bool:
        source, departure = self._source, self._departure
        assert departure is not None
        arrival = Arrival(source.instance_id, self._tag, departure, blocks, source.place, source.process)
        answer = self._peer.reserve(arrival)
        if not isinstance(answer, Accepted):
            self._refusal = answer.reason
            return False
        self._accepted = answer
        self._distance = transport.distance(source.place, source.process, answer.place, answer.process)
        carrier = transport.choose_carrier(source.carriers, answer.carriers, self._distance)
        if carrier is None:
            self._refusal = f"no common carrier: {', '.join(source.carriers)} here, {', '.join(answer.carriers)} there"
            return False
        self._carrier = carrier
        log.info(
            "instance %d to %d: blocks travel as %s (%s)",
            source.instance_id,
            self._destination,
            carrier,
            self._distance,
        )
        if self._frozen is not None:  # frozen before anything was reserved: nothing was read yet
            self._frozen.parcels = self._call(lambda engine: self._read(engine, 0, blocks))
        return True

    def _copy(self, first_block: int, blocks: int, last: bool) -> Action:
        if last:  # went with the reservation, see _land
            return self._machine.copied(self._machine.reserved_blocks)
        try:
            for piece in self._pieces(first_block, blocks):
                failed = self._copy_piece(*piece)
                if failed is not None:
                    return self._machine.gone(failed)
        except LinkError as error:
            return self._unreachable(error)
        self._source.notice("migrate_stage", self._request_id, f"stage {self._machine.stages + 1}")
        held = self._call(lambda engine: engine.held_blocks(self._request_id))
        return self._machine.gone(held) if isinstance(held, AbortReason) else self._machine.copied(held)

    def _freeze(self) -> Action:
        resting: Future[_Frozen | AbortReason] = Future()

        def check(engine: Engine) -> None:
            blocks = None if resting.cancelled() else engine.frozen_blocks(self._request_id)
            if blocks is None and not resting.cancelled():
                return
            self._source.after_step.remove(check)
            if blocks is None or not resting.set_running_or_notify_cancel():
                return
            try:
                resting.set_result(blocks if isinstance(blocks, AbortReason) else self._at_rest(engine, blocks))
                if self._accepted is not None:  # this thread would keep the interpreter lock while it plans a step
                    self._handing_over.wait(HAND_OVER_S)
            except Exception as error:  # not the engine thread's affair
                resting.set_exception(error)

        def freeze(engine: Engine) -> None:
            self._froze_s = time.monotonic()
            engine.freeze(self._request_id)
            self._source.after_step.append(check)
            check(engine)

        self._call(freeze)
        try:
            if self._accepted is not None and not resting.done():
                self._peer.expect(self._request_id, self._tag)
            frozen = resting.result(self._source.limits.step_s)
        except LinkError as error:
            return self._unreachable(error)
        except FutureTimeout:
            raise NoAnswer("the request did not come to rest") from None
        finally:
            resting.cancel()  # nobody waits any more
        if isinstance(frozen, AbortReason):
            return self._machine.gone(frozen)
        self._frozen = frozen
        return self._machine.froze(frozen.blocks)

    def _at_rest(self, engine: Engine, blocks: int) -> _Frozen:
        final = engine.final_state(self._request_id)
        last_token_s = self._source.last_token_s(self._request_id)
        if self._recompute:
            return _Frozen(0, [], replace(final, computed_tokens=0), last_token_s)
        first = self._machine.copied_blocks
        parcels = [] if self._accepted is None else self._read(engine, first, blocks - first)
        return _Frozen(blocks, parcels, final, last_token_s)

    def _land(self, blocks: int) -> Action:
        """The last reservation, copy and commit in one message; the machine's next two actions find them done."""
        assert self._frozen is not None
        by_name = self._carrier in transport.BY_NAME
        begin_by_s = time.monotonic() + self._source.limits.control_s
        landing = Landing(
            self._request_id,
            self._tag,
            blocks,
            self._first_missing(self._machine.copied_blocks),
            self._frozen.parcels,
            self._frozen.final,
            self._frozen.last_token_s,
            self._recompute and bool(self._frozen.final.generated),
            begin_by_s if by_name else None,
        )
        self._handed_over = True
        self._handing_over.set()
        try:
            landed = self._handed_over = self._peer.land(landing)
        except Exception as error:  # whatever it was, the destination may have got as far as to go on
            log.warning("no answer to the last stage of %s: %s", self._request_id, error)
            if by_name:  # the message may still arrive, and what it names must be there until it would be refused
                time.sleep(max(0.0, begin_by_s + self._source.limits.control_s - time.monotonic()))
            self._call(self._let_go)
            self._source.lost_sight(self._request_id, self._tag, self._destination)
            self._frozen = None
            return self._machine.gone(AbortReason.destination_lost)
        self._downtime_s = time.monotonic() - self._froze_s
        return self._machine.reserved() if landed else self._machine.refused()

    def _commit(self) -> MoveOutcome:
        assert self._accepted is not None
        if not self._call(self._release):
            self._quietly(lambda: self._peer.abort([self._request_id]))
            return MoveOutcome(False, self._request_id, "aborted by the client")
        source = self._source
        source.departed(self._request_id, self._tag, self._destination, self._accepted.incarnation, self._downtime_s)
        source.notice("migrate_commit", self._request_id, f"from {source.instance_id}", self._destination)
        return MoveOutcome(
            True,
            self._request_id,
            stages=self._machine.stages,
            copied_blocks=self._machine.copied_blocks,
            downtime_s=self._downtime_s,
            carrier=f"{self._carrier} ({self._distance})",
        )

    def _abort(self, reason: AbortReason) -> MoveOutcome:
        self._call(lambda engine: engine.thaw(self._request_id))
        if self._accepted is not None:
            self._quietly(lambda: self._peer.cancel(self._request_id, self._tag))
        why = f"{reason}: {self._refusal}" if self._refusal else str(reason)
        self._source.notice("migrate_abort", self._request_id, why)
        return MoveOutcome(False, self._request_id, why, stages=self._machine.stages)

    # --- parts

    def _pieces(self, first_block: int, blocks: int) -> list[tuple[int, int]]:
        """Cut a copy so that neither side's steps wait long for it: first block and number of blocks of each piece."""
        whole = self._carrier in transport.BESIDE_STEPS
        size = blocks if whole else max(1, transport.PIECE_BYTES // max(1, self._source.block_bytes))
        end = first_block + blocks
        return [(first, min(size, end - first)) for first in range(first_block, end, size)]

    def _copy_piece(self, first_block: int, blocks: int) -> AbortReason | None:
        """Copy some blocks; return why the migration is off, if it is."""
        if time.monotonic() > self._end_s:
            return AbortReason.destination_lost
        parcels = self._call(lambda engine: self._read_live(engine, first_block, blocks))
        if isinstance(parcels, AbortReason):
            return parcels
        first = self._first_missing(first_block)
        if parcels and not self._peer.receive(self._request_id, self._tag, first, parcels):
            return AbortReason.destination_lost
        return None

    def _read_live(self, engine: Engine, first_block: int, blocks: int) -> list[Parcel] | AbortReason:
        held = engine.held_blocks(self._request_id)
        return held if isinstance(held, AbortReason) else self._read(engine, first_block, blocks)

    def _read(self, engine: Engine, first_block: int, blocks: int) -> list[Parcel]:
        """Read what the destination does not have already."""
        first = self._first_missing(first_block)
        blocks -= first - first_block
        return engine.read_blocks(self._request_id, first, blocks, self._carrier) if blocks > 0 else []

    def _first_missing(self, first_block: int) -> int:
        assert self._accepted is not None
        return max(first_block, self._accepted.present_blocks)

    def _release(self, engine: Engine) -> bool:
        released = engine.release(self._request_id)
        self._source.forget(self._request_id)
        return released

    def _let_go(self, engine: Engine) -> None:
        engine.abort(self._request_id)
        self._source.forget(self._request_id)

    def _unreachable(self, error: LinkError) -> Action:
        log.warning("migration of %s to instance %d: %s", self._request_id, self._destination, error)
        self._refusal = str(error)
        return self._machine.gone(AbortReason.destination_lost)

    def _quietly(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except LinkError as error:
            log.debug("instance %d was not told: %s", self._destination, error)

    def _call(self, function: Callable[[Engine], Any]) -> Any:
        return self._source.thread.call(function, self._source.limits.step_s)
