"""The llumlet: owner of one engine, which it steps, reports on, and moves requests out of and into (§4.3).

Its public methods may be called from any thread or, through a link, from any process; each of them waits at most for
the time limit of its kind. What happens inside the engine happens in the engine's own thread, between two steps.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from llumnix.cluster.real import transport
from llumnix.cluster.real.engine_thread import EngineThread
from llumnix.cluster.real.links import Peer
from llumnix.cluster.real.messages import (
    Accepted,
    Arrival,
    Chunk,
    Draining,
    Item,
    Landing,
    LinkError,
    Moved,
    MoveOutcome,
    News,
    Notice,
    Refused,
    Resumed,
    Step,
    Submission,
    Tag,
    Unknown,
)
from llumnix.cluster.real.move import Move
from llumnix.cluster.real.outbox import Outbox
from llumnix.cluster.real.spec import Limits
from llumnix.engines.base import Engine, MigrationRefused, MovableRequest, Parcel, Ready, StepResult
from llumnix.load import InstanceLoad
from llumnix.policies.migration import MigrationPolicy, choose_request

log = logging.getLogger(__name__)
REMEMBERED = 10_000
"""How many outdated requests an instance remembers, so that a message about one that comes late is refused."""

_TWO_STAGES = MigrationPolicy()


@dataclass(slots=True)
class _Here:
    """A request that this instance owns. `prior` are the tokens that were generated before it came here.

    `last_token_s` is wall-clock time. `resuming`: it came from another instance and has had no token since;
    `recomputing_since_s`, if its KV cache did not come along.
    """

    tag: Tag
    prior: tuple[int, ...] = ()
    exec_s: float = 0.0
    last_token_s: float | None = None
    resuming: bool = False
    recomputing_since_s: float | None = None


@dataclass(slots=True)
class _Coming:
    """A request that a source is sending."""

    tag: Tag
    source: int
    heard_s: float
    distance: transport.Distance


@dataclass(slots=True)
class _State:
    """Who is here. Only touched in the engine's thread."""

    here: dict[str, _Here] = field(default_factory=dict)
    coming: dict[str, _Coming] = field(default_factory=dict)
    void: OrderedDict[str, int] = field(default_factory=OrderedDict)  # attempts up to this one are outdated


class Llumlet:
    """One instance. `report` takes load reports; `peer` finds another instance; `on_failure` ends the process.

    `node` names the node that it is on; instances whose nodes have equal names share its memory.
    """

    def __init__(
        self,
        instance_id: int,
        engine: Engine,
        *,
        report: Callable[[InstanceLoad], None],
        peer: Callable[[int], Peer],
        limits: Limits,
        node: str = "",
        report_period_s: float = 0.05,
        heartbeat_s: float = 1.0,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.instance_id = instance_id
        self.incarnation = uuid.uuid4().hex
        self.limits = limits
        self.outbox = Outbox()
        self.push: Callable[[bool], None] = lambda at_once: None  # set by who carries the news without being polled
        self.place, self.process = transport.here(node)
        self._report = report
        self._peer = peer
        self._report_period_s = report_period_s
        self._heartbeat_s = heartbeat_s
        self._on_failure = on_failure
        self._state = _State()
        self._draining = False
        self._moving = threading.Lock()
        self._steps: list[Step] | None = None
        self._steps_done = 0
        self._heard = False
        self._last_report_s = 0.0
        self._last_load: InstanceLoad | None = None
        self.carriers = engine.carriers
        self.block_bytes = engine.block_bytes
        self.migration_unsupported = engine.migration_unsupported
        self.thread = EngineThread(engine, self._after_step, self._when_idle, self._failed)
        self._engine = engine
        self.after_step: list[Callable[[Engine], None]] = []  # moves that wait for a freeze
        if self.migration_unsupported:
            log.warning("instance %d does not migrate: %s", instance_id, self.migration_unsupported)

    def start(self) -> None:
        """Begin to serve."""
        self.thread.start()

    def begin_run(self, *, record_steps: bool, transports: Sequence[str] = ()) -> None:
        """Forget all requests of the run before, if there was one; with `transports` send blocks by no others."""

        def begin(engine: Engine) -> None:
            self._abort(engine, [*self._state.here, *self._state.coming])
            engine.forget_prefixes()
            self._state = _State()
            self.outbox.clear()
            self.incarnation = uuid.uuid4().hex
            self._draining = False
            self._steps = [] if record_steps else None
            self.carriers = tuple(name for name in engine.carriers if not transports or name in transports)
            self._steps_done = 0
            self._send_report()

        self.thread.call(begin, self.limits.start_s)

    def stop(self) -> None:
        """End serving and free the device."""
        self.thread.stop(self.limits.control_s)
        self._engine.shutdown()

    # --- for the front end

    def submit(self, submission: Submission) -> None:
        """Queue a request. ValueError if the engine cannot serve it at all, Draining if it is to take none."""
        self.thread.call(lambda engine: self._add(engine, submission), self.limits.control_s)

    def abort(self, request_ids: list[str]) -> None:
        """Forget requests, running, waiting, leaving or arriving; unknown ones are ignored."""
        self.thread.call(lambda engine: self._abort(engine, request_ids), self.limits.control_s)

    def settle(self, attempts: dict[str, int], renounce: bool) -> dict[str, tuple[int, ...]]:
        """Tell which of these requests live here in the given attempt; `renounce`: the others will not come any more.

        With each come the tokens that it had when it came: those that its last instance had no time to deliver.
        """
        return self.thread.call(lambda engine: self._settle(engine, attempts, renounce), self.limits.control_s)

    def poll(self, after: int, limit_s: float) -> News:
        """Return what happened after item number `after`; waits up to limits.poll_s for something to tell.

        `limit_s`, how long the caller waits for the answer, is the business of the link between the two.
        """
        del limit_s
        return self.news(after, after, self.limits.poll_s)

    def news(self, arrived: int, sent: int, wait_s: float = 0.0) -> News:
        """Forget what came up to item number `arrived`, and return what came after `sent`."""
        self._heard = True
        self.outbox.drop(arrived)
        last, items = self.outbox.after(sent, wait_s)
        return News(self.incarnation, last, items, self.thread.stuck_s(), self._last_load, self._steps_done)

    def steps(self) -> list[Step]:
        """Return the steps so far, if they are recorded."""
        return self.thread.call(lambda _: list(self._steps or ()), self.limits.control_s)

    def set_draining(self, draining: bool) -> None:
        """Take no request, not even one that is on its way, and give away what is here; or stop doing so."""

        def set_draining(engine: Engine) -> None:
            if self._draining is draining:
                return
            self._draining = draining
            for request_id in list(self._state.coming) if draining else ():
                self._drop_coming(engine, request_id)
            self._send_report()

        self.thread.call(set_draining, self.limits.control_s)

    def is_empty(self) -> bool:
        """Tell whether a draining instance has nothing left, not even to tell. It stays so, since it takes nothing."""

        def is_empty(engine: Engine) -> bool:
            del engine
            left = self._state.here or self._state.coming or self._moving.locked() or self.outbox.unheard()
            return self._draining and not left

        return self.thread.call(is_empty, self.limits.control_s)

    # --- for the global scheduler

    def migrate_out(self, destination: int, policy: MigrationPolicy = _TWO_STAGES) -> MoveOutcome:
        """Choose one request by the policy and move it to another instance; returns when that has ended."""
        if self.migration_unsupported:
            return MoveOutcome(False, reason=self.migration_unsupported)
        if not self._moving.acquire(blocking=False):
            return MoveOutcome(False, reason="a migration is under way")
        try:
            chosen = self.thread.call(lambda engine: self._choose(engine, policy), self.limits.control_s)
            if chosen is None:
                return MoveOutcome(False, reason="nothing to move")
            return self.move(chosen.request_id, destination, policy)
        finally:
            self._moving.release()

    def move(self, request_id: str, destination: int, policy: MigrationPolicy = _TWO_STAGES) -> MoveOutcome:
        """Move one request; what cannot move stays, and the outcome says why."""
        outcome = Move(self, request_id, destination, self._peer(destination), policy).run()
        log.debug("migration of %s to %d: %s", request_id, destination, outcome)
        return outcome

    # --- for sources (Peer)

    def reserve(self, arrival: Arrival) -> Accepted | Refused:
        """Set blocks aside for a request that another instance sends."""
        return self.thread.call(lambda engine: self._reserve(engine, arrival), self.limits.control_s)

    def extend(self, request_id: str, tag: Tag, blocks: int) -> bool:
        """Set more blocks aside; False if there is no room or the request is not expected any more."""

        def extend(engine: Engine) -> bool:
            return self._expected(request_id, tag) is not None and engine.extend(request_id, blocks)

        return self.thread.call(extend, self.limits.control_s)

    def receive(self, request_id: str, tag: Tag, first_block: int, parcels: list[Parcel]) -> bool:
        """Fill reserved blocks; False if the request is not expected any more."""

        def write(engine: Engine) -> Ready | None:
            if self._expected(request_id, tag) is None:
                return None
            return engine.write_blocks(request_id, first_block, parcels)

        return _waited(self.thread.call(write, self.limits.copy_s))

    def expect(self, request_id: str, tag: Tag) -> None:
        """Be ready for the last stage of a request: its source lets it end one more step, then it comes. No wait."""

        def expect(engine: Engine) -> None:
            if self._expected(request_id, tag) is not None:
                engine.expect(request_id)

        self.thread.post(expect)

    def land(self, landing: Landing) -> bool:
        """Take the last blocks and go on with the request; False if that cannot be: it then stays where it is."""

        def land(engine: Engine) -> Ready | None:
            request_id = landing.request_id
            late = landing.begin_by_s is not None and time.monotonic() > landing.begin_by_s
            if late or self._expected(request_id, landing.tag) is None:
                return None
            if landing.blocks and not engine.extend(request_id, landing.blocks):
                return None
            ready = engine.write_blocks(request_id, landing.first_block, landing.parcels)
            engine.commit(landing.final)
            del self._state.coming[request_id]
            self._state.here[request_id] = _Here(
                landing.tag,
                landing.final.generated,
                last_token_s=landing.last_token_s,
                resuming=landing.last_token_s is not None,
                recomputing_since_s=time.time() if landing.recompute else None,
            )
            return ready

        return _waited(self.thread.call(land, self.limits.copy_s))

    def cancel(self, request_id: str, tag: Tag) -> None:
        """Free what was reserved for a request that does not come."""

        def cancel(engine: Engine) -> None:
            if self._expected(request_id, tag) is not None:
                self._drop_coming(engine, request_id)

        self.thread.call(cancel, self.limits.control_s)

    # --- in the engine's thread

    def tag_of(self, request_id: str) -> Tag | None:
        """Return the life of a request that is here."""
        here = self._state.here.get(request_id)
        return None if here is None else here.tag

    def last_token_s(self, request_id: str) -> float | None:
        """Return the wall-clock time of a request's last token."""
        here = self._state.here.get(request_id)
        return None if here is None else here.last_token_s

    def forget(self, request_id: str) -> None:
        """Note that a request is not here any more."""
        self._state.here.pop(request_id, None)

    def tell(self, *items: Item) -> None:
        """Put items into the outbox; they leave at once, ahead of what the request does next elsewhere."""
        self.outbox.put(list(items))
        self.push(True)

    def notice(
        self, kind: str, request_id: str | None, detail: str | None = None, instance_id: int | None = None
    ) -> None:
        """Put an event into the outbox, of this instance unless another is named."""
        where = self.instance_id if instance_id is None else instance_id
        self.tell(Notice(time.time(), kind, where, request_id, detail))

    def _add(self, engine: Engine, submission: Submission) -> None:
        request_id, attempt = submission.request.request_id, submission.attempt
        if attempt <= self._state.void.get(request_id, -1):
            return
        old = self._state.here.get(request_id)
        if old is not None:
            if old.tag.attempt >= attempt:
                return  # the same submission again, after an answer that got lost
            engine.abort(request_id)
        if self._draining:
            raise Draining(f"instance {self.instance_id} is draining")
        engine.add(submission.request, submission.generated)
        self._state.here[request_id] = _Here(Tag(attempt), submission.generated)

    def _abort(self, engine: Engine, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            if request_id in self._state.coming:
                self._drop_coming(engine, request_id)
            if self._state.here.pop(request_id, None) is not None:
                engine.abort(request_id)

    def _settle(self, engine: Engine, attempts: dict[str, int], renounce: bool) -> dict[str, tuple[int, ...]]:
        owned = {}
        for request_id, attempt in attempts.items():
            here = self._state.here.get(request_id)
            if here is not None and here.tag.attempt >= attempt:
                owned[request_id] = here.prior
            elif renounce:
                self._void(request_id, attempt)
                self._abort(engine, [request_id])
        return owned

    def _void(self, request_id: str, attempt: int) -> None:
        void = self._state.void
        void[request_id] = max(attempt, void.get(request_id, -1))
        void.move_to_end(request_id)
        if len(void) > REMEMBERED:
            void.popitem(last=False)

    def _choose(self, engine: Engine, policy: MigrationPolicy) -> MovableRequest | None:
        """Choose by the policy among those that can move; a draining instance gives away its queue as well."""
        movable = [m for m in engine.movable() if m.request_id in self._state.here]
        load = engine.load(self.instance_id, draining=self._draining)
        chosen = choose_request(movable, policy, load)
        if chosen is None and self._draining:
            chosen = next((m for m in engine.queued() if m.request_id in self._state.here), None)
        return chosen

    def _reserve(self, engine: Engine, arrival: Arrival) -> Accepted | Refused:
        request_id = arrival.departure.request.request_id
        if self._draining:
            return Refused("the destination is draining")
        if arrival.tag.attempt <= self._state.void.get(request_id, -1):
            return Refused("the request has been started again elsewhere")
        if request_id in self._state.here or request_id in self._state.coming:
            return Refused("the destination has this request already")
        try:
            present = engine.reserve(arrival.departure, arrival.blocks)
        except MigrationRefused as refused:
            return Refused(refused.reason, no_memory=True)
        apart = transport.distance(self.place, self.process, arrival.place, arrival.process)
        self._state.coming[request_id] = _Coming(arrival.tag, arrival.source, time.monotonic(), apart)
        carriers = engine.carriers_from(arrival.departure)
        return Accepted(self.incarnation, present, carriers, self.place, self.process)

    def _expected(self, request_id: str, tag: Tag) -> _Coming | None:
        coming = self._state.coming.get(request_id)
        if coming is None or coming.tag != tag:
            return None
        coming.heard_s = time.monotonic()
        return coming

    def _drop_coming(self, engine: Engine, request_id: str) -> None:
        del self._state.coming[request_id]
        engine.cancel(request_id)

    def _after_step(self, result: StepResult, step_s: float) -> None:
        items: list[Item] = []
        now_s = time.time()
        self._steps_done += bool(result.scheduled)
        if self._steps is not None and result.scheduled:
            self._steps.append(Step(now_s, step_s, len(result.scheduled), sum(result.scheduled.values())))
        for request_id in result.scheduled:
            if (here := self._state.here.get(request_id)) is not None:
                here.exec_s += step_s
        for output in result.outputs:
            here = self._state.here.get(output.request_id)
            if here is None:
                continue
            if here.resuming:
                items.append(_resumed(output.request_id, here, now_s))
            here.last_token_s = now_s
            items.append(
                Chunk(
                    request_id=output.request_id,
                    attempt=here.tag.attempt,
                    first_index=output.first_index,
                    tokens=tuple(output.tokens),
                    finish_reason=output.finish_reason,
                    hops=here.tag.hops,
                    exec_s=here.exec_s,
                    step_s=step_s,
                    stop_reason=output.stop_reason,
                    extra=output.logprobs,
                )
            )
            here.exec_s = 0.0
            if output.finish_reason is not None:
                del self._state.here[output.request_id]
        # Behind the tokens: where steps are planned ahead, the one before still yields a token of who is preempted.
        items += [self._preempted(request_id, now_s - step_s) for request_id in result.preempted]
        self.outbox.put(items)
        for check in list(self.after_step):  # first: a frozen request waits for it
            check(self._engine)
        self.push(not self._engine.has_work())
        self._report_if_due()

    def _preempted(self, request_id: str, planned_s: float) -> Notice:
        """Preempted by the step planned at `planned_s`, or since its last token, if that came later."""
        here = self._state.here.get(request_id)
        last_token_s = None if here is None else here.last_token_s
        return Notice(max(planned_s, last_token_s or 0.0), "preempt", self.instance_id, request_id)

    def _when_idle(self) -> None:
        for check in list(self.after_step):
            check(self._engine)
        self._report_if_due()

    def _report_if_due(self) -> None:
        """Send a report when the load has changed, at most every report period; the same one again as a heartbeat.

        None while nobody listens: what came here would be lost from sight.
        """
        now_s = time.monotonic()
        if not self._heard or now_s - self._last_report_s < self._report_period_s:
            return
        self._drop_forsaken(now_s)
        load = self._engine.load(self.instance_id, draining=self._draining)
        if load != self._last_load or now_s - self._last_report_s >= self._heartbeat_s:
            self._send_report(load)

    def _send_report(self, load: InstanceLoad | None = None) -> None:
        load = load or self._engine.load(self.instance_id, draining=self._draining)
        self._last_report_s, self._last_load = time.monotonic(), load
        try:
            self._report(load)
        except LinkError as error:  # the scheduler is away; it hears of us when it is back
            log.debug("load report of instance %d got lost: %s", self.instance_id, error)

    def _drop_forsaken(self, now_s: float) -> None:
        """Cancel reservations whose source has been silent for too long."""
        for request_id, coming in list(self._state.coming.items()):
            if now_s - coming.heard_s > self.limits.reservation_s:
                log.warning("instance %d gives up on %s: its source is silent", self.instance_id, request_id)
                self._drop_coming(self._engine, request_id)

    def _failed(self, error: BaseException) -> None:
        if self._on_failure is not None:
            self._on_failure(error)

    # --- what a move tells the front end

    def departed(self, request_id: str, tag: Tag, destination: int, incarnation: str, downtime_s: float) -> None:
        """The request has gone on at the destination."""
        self.tell(Moved(request_id, tag, destination, incarnation, downtime_s))

    def lost_sight(self, request_id: str, tag: Tag, destination: int) -> None:
        """Whether the request has gone on at the destination is not known."""
        self.tell(Unknown(request_id, tag, destination))


def _resumed(request_id: str, here: _Here, now_s: float) -> Resumed:
    """Note the first token of a request that came from another instance."""
    assert here.last_token_s is not None
    wait_s = 0.0 if here.recomputing_since_s is None else now_s - here.recomputing_since_s
    here.resuming, here.recomputing_since_s = False, None
    return Resumed(request_id, here.tag.attempt, now_s - here.last_token_s, wait_s)


def _waited(ready: Ready | None) -> bool:
    """Wait, outside the engine's thread, until what was written has left the source; False if nothing was."""
    if ready is None:
        return False
    ready()
    return True
