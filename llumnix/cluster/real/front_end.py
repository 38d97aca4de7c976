"""The front end: takes requests, gives back their tokens exactly once, whatever happens to instances meanwhile.

It asks the global scheduler where a request starts, and listens to every instance for tokens; tokens do not pass the
scheduler. Without an answer from the scheduler it chooses by itself (bypass, §5 of the paper: dispatch goes on,
migration pauses). When an instance dies, its requests are started again from the tokens that were delivered. Tokens,
not text: an HTTP server sits on `submit` and `Stream`, with a detokenizer of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from llumnix.cluster.real.delivery import Delivery
from llumnix.cluster.real.links import Dispatcher, Instance
from llumnix.cluster.real.messages import (
    Chunk,
    Draining,
    InstanceLost,
    LinkError,
    Moved,
    News,
    NoAnswer,
    Notice,
    Resumed,
    Submission,
    Tag,
    Unknown,
)
from llumnix.cluster.real.spec import Limits, OnLoss
from llumnix.engines.base import EngineRequest
from llumnix.load import InstanceLoad

log = logging.getLogger(__name__)
SENDERS = 64
"""How many requests are on their way to instances at the same time; each waits there for the end of a step."""
REMEMBERED = 1000
"""How many ended requests a front end remembers, for what their instances say of them afterwards."""


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The end of a stream: "stop", "length", "abort", or "error" with its reason."""

    finish_reason: str
    error: str | None = None


@dataclass(slots=True)
class Life:
    """What the front end knows of one request; times are wall-clock seconds, None while they have not come."""

    request: EngineRequest
    sent_s: float
    dispatch_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    end_s: float | None = None
    instance_first: int | None = None
    instance_last: int | None = None
    preemptions: int = 0
    preemption_loss_s: float = 0.0
    preempted_since_s: float | None = None
    step_s: float = 0.0  # of the step that made its last token
    migrations: int = 0
    migration_downtime_s: float = 0.0
    migration_gap_s: float = 0.0
    max_token_gap_s: float | None = None
    exec_s: float = 0.0
    replays: int = 0
    finish_reason: str | None = None
    error: str | None = None
    hops: int = 0
    visited: set[int] = field(default_factory=set)
    delivery: Delivery = field(default_factory=Delivery)

    @property
    def tag(self) -> Tag:
        """The life that is meant when instances are asked about this request."""
        return Tag(self.delivery.attempt, self.hops)


class Stream:
    """Tokens of one request as they come: iterate, or wait for the end."""

    def __init__(self, life: Life, cancel: Callable[[], None]) -> None:
        self.life = life
        self._cancel = cancel
        self._queue: queue.SimpleQueue[Chunk | StreamEnd] = queue.SimpleQueue()
        self.ended = threading.Event()

    def put(self, item: Chunk | StreamEnd) -> None:
        """Add what came; for the front end."""
        self._queue.put(item)
        if isinstance(item, StreamEnd):
            self.ended.set()

    def __iter__(self) -> Iterator[Chunk]:
        while not isinstance(item := self._queue.get(), StreamEnd):
            yield item

    def cancel(self) -> None:
        """Stop the request, wherever it is by now."""
        self._cancel()

    def wait(self, limit_s: float | None = None) -> bool:
        """Wait for the end; False if it has not come within `limit_s`."""
        return self.ended.wait(limit_s)

    @property
    def tokens(self) -> list[int]:
        """All tokens so far."""
        return list(self.life.delivery.tokens)


class FrontEnd:
    """Between clients and instances. Thread-safe; one thread per instance listens, a pool sends."""

    def __init__(
        self,
        instances: Sequence[Instance],
        dispatcher: Dispatcher,
        *,
        limits: Limits,
        on_loss: OnLoss = OnLoss.replay,
        bypass_s: float = 1.0,
    ) -> None:
        self._instances = {instance.instance_id: instance for instance in instances}
        self._dispatcher = dispatcher
        self._limits = limits
        self._on_loss = on_loss
        self._bypass_s = bypass_s
        self._ask_again_s = 0.0
        self._kill_again_s = 0.0
        self._lock = threading.RLock()
        self._streams: dict[str, Stream] = {}
        self._ended: OrderedDict[str, Life] = OrderedDict()
        self._attempts = itertools.count()  # over all requests, so that one that takes an old id is not an old one
        self._incarnations: dict[int, str] = {}
        self._given_up: dict[int, str] = {}  # incarnations whose requests others do by now
        self._down: set[int] = set(self._instances)
        self._closed = threading.Event()
        self._news = threading.Condition()
        self.notices: list[Notice] = []
        self.loads: dict[int, InstanceLoad] = {}
        self.delivered = 0  # tokens
        self.duplicates = 0
        self.bypassed = 0
        self.polls = dict.fromkeys(self._instances, 0)
        self.steps: dict[int, int] = {}  # of the present incarnations, as far as they have told
        self._steps_before = 0  # of those that are gone
        self._senders = ThreadPoolExecutor(max_workers=SENDERS, thread_name_prefix="sender")
        self._listeners = [self._listener(instance) for instance in instances]

    def start(self) -> None:
        """Listen to all instances, and wait until each has answered once (NoAnswer after limits.start_s)."""
        for thread in self._listeners:
            thread.start()
        with self._news:
            if not self._news.wait_for(lambda: not self._down, self._limits.start_s):
                raise NoAnswer(f"instances {sorted(self._down)} did not start within {self._limits.start_s:g} s")

    def close(self) -> None:
        """Stop listening. Streams that have not ended do so now, with an error: nobody is to wait for them."""
        self._closed.set()
        self._senders.shutdown(wait=False, cancel_futures=True)
        for thread in self._listeners:
            if thread.is_alive():
                thread.join(self._limits.poll_s + self._limits.control_s)
        for stream in list(self._streams.values()):
            self._fail(stream, "the front end was closed")

    def _listener(self, instance: Instance) -> threading.Thread:
        name = f"listener-{instance.instance_id}"
        return threading.Thread(target=self._listen, args=(instance,), name=name, daemon=True)

    # --- for who starts and ends instances

    def add(self, instance: Instance) -> None:
        """Listen to one more instance, which may still be starting: it gets requests once it has answered."""
        with self._lock:
            self._down.add(instance.instance_id)
            self.polls[instance.instance_id] = 0
            self._instances = self._instances | {instance.instance_id: instance}  # others may be going through the old
        self._listeners.append(self._listener(instance))
        self._listeners[-1].start()

    def remove(self, instance_id: int, reason: str | None = None) -> None:
        """Listen to an instance no more: nothing is left there, or it is down, or (with a reason) it never came up."""
        with self._lock:
            self._instances = {id_: instance for id_, instance in self._instances.items() if id_ != instance_id}
            was_up = self._incarnations.pop(instance_id, None) is not None
            if was_up or reason is not None:
                self.notices.append(Notice(time.time(), "instance_down", instance_id, None, reason))
            self._down.discard(instance_id)
            self.loads.pop(instance_id, None)
            self._steps_before += self.steps.pop(instance_id, 0)

    def is_up(self, instance_id: int) -> bool:
        """Tell whether an instance has answered and is not known to have gone since."""
        return instance_id in self._incarnations

    def steps_completed(self) -> int:
        """Return the number of steps of all instances so far, as far as they have told."""
        with self._lock:
            return self._steps_before + sum(self.steps.values())

    def note(self, kind: str, instance_id: int, detail: str | None = None, time_s: float | None = None) -> None:
        """Add an event, of now unless its time is given."""
        self.notices.append(Notice(time.time() if time_s is None else time_s, kind, instance_id, None, detail))

    # --- for clients

    def submit(self, request: EngineRequest) -> Stream:
        """Take a request and return at once; its tokens come through the stream. ValueError for an id in use."""
        life = Life(request, sent_s=time.time(), delivery=Delivery(next(self._attempts)))
        stream = Stream(life, lambda: self.cancel(request.request_id))
        with self._lock:
            if request.request_id in self._streams:
                raise ValueError(f"request id {request.request_id} is in use")
            self._streams[request.request_id] = stream
        self._later(self._dispatch, stream)
        return stream

    def cancel(self, request_id: str) -> None:
        """Stop a request: its stream ends now, and every instance is told, since it may be between two of them."""
        with self._lock:
            stream = self._streams.get(request_id)
            if stream is None:
                return
            self._end(stream, StreamEnd("abort"))
        for instance in self._instances.values():
            if self.is_up(instance.instance_id):
                self._later(self._tell_abort, instance, [request_id])

    def live(self) -> int:
        """Return the number of requests that have not ended."""
        return len(self._streams)

    # --- dispatch

    def _dispatch(self, stream: Stream) -> None:
        """Send a request to an instance; to another one for as long as those chosen do not take it."""
        life = stream.life
        request_id = life.request.request_id
        with self._lock:
            submission = self._submission(life)
        started_s = time.monotonic()
        while not self._closed.is_set() and not stream.ended.is_set():
            if time.monotonic() - started_s > self._limits.start_s:
                return self._fail(stream, "no instance took the request")
            instance_id = self._choose(life)
            instance = None if instance_id is None else self._instances.get(instance_id)
            if instance is None or instance_id is None:
                self._closed.wait(0.05)
                continue
            with self._lock:
                if life.delivery.attempt != submission.attempt:
                    return None  # somebody else is at it already
                life.instance_last, life.hops = instance_id, 0
                incarnation = self._incarnations.get(instance_id)
            try:
                instance.submit(submission)
            except Draining:
                self._closed.wait(0.05)  # the global scheduler hears of it, too
                continue
            except InstanceLost as error:
                # It may have taken it, and be alive: nobody listens to that attempt any more.
                with self._lock:
                    if life.delivery.attempt == submission.attempt:
                        life.delivery.replay(next(self._attempts))
                        submission = self._submission(life)
                self._lost(instance, str(error))
                continue
            except NoAnswer:
                # It may have taken it: only its death, or its word, makes another attempt safe.
                self._later(self._settle, [stream])
                return None
            except ValueError as error:
                self.notices.append(Notice(time.time(), "reject", None, request_id))
                return self._fail(stream, str(error))
            now_s = time.time()
            with self._lock:
                if life.dispatch_s is None:
                    life.dispatch_s, life.instance_first = now_s, instance_id
                kind = "replay" if life.replays else "dispatch"
                self.notices.append(Notice(now_s, kind, instance_id, request_id))
                life.visited.add(instance_id)
                gone = self._incarnations.get(instance_id) != incarnation
            if gone:
                self._later(self._settle, [stream])
            return None
        return None

    def _submission(self, life: Life) -> Submission:
        return Submission(life.request, life.delivery.attempt, tuple(life.delivery.tokens))

    def _choose(self, life: Life) -> int | None:
        """Ask the scheduler; if it is away, take the instance with the fewest live requests. None: none is up."""
        if time.monotonic() >= self._ask_again_s:
            try:
                chosen = self._dispatcher.dispatch(life.request.priority)
                if self.is_up(chosen):
                    return chosen
            except LinkError as error:
                log.warning("the global scheduler does not answer, dispatching without it: %s", error)
                self._without_scheduler(hangs=isinstance(error, NoAnswer))
        with self._lock:
            up = sorted(set(self._instances) - self._down - self._draining())
            if not up:
                return None
            self.bypassed += 1
            counts = dict.fromkeys(up, 0)
            for stream in self._streams.values():
                if stream.life.instance_last in counts and stream.life is not life:
                    counts[stream.life.instance_last] += 1
        return min(up, key=lambda id_: (counts[id_], id_))

    def _without_scheduler(self, *, hangs: bool) -> None:
        """Ask it no more for a while. One that hangs is ended, and then has time to start: it has nothing to lose."""
        now_s = time.monotonic()
        with self._lock:
            self._ask_again_s = now_s + self._bypass_s
            if not hangs or now_s < self._kill_again_s:
                return
            self._kill_again_s = now_s + self._limits.start_s
        try:
            self._dispatcher.kill()
        except LinkError as error:
            log.debug("the global scheduler could not be killed: %s", error)

    def _draining(self) -> set[int]:
        return {id_ for id_, load in self.loads.items() if load.draining}

    # --- listening

    def _listen(self, instance: Instance) -> None:
        """Poll one instance for as long as the front end is open and the instance is one of its own."""
        last = 0
        while not self._closed.is_set() and self._is_ours(instance):
            try:
                up = instance.instance_id not in self._down
                limit_s = self._limits.poll_s + self._limits.control_s if up else self._limits.start_s
                self.polls[instance.instance_id] += 1
                news = instance.poll(last, limit_s)
            except InstanceLost as error:
                last = 0
                self._lost(instance, str(error))
                self._closed.wait(0.2)
                continue
            except NoAnswer as error:
                last = 0
                self._put_down(instance, str(error))
                continue
            if news.stuck_s > self._limits.step_s:
                last = 0
                self._put_down(instance, f"a step has been going on for {news.stuck_s:.0f} s")
                continue
            if self._given_up.get(instance.instance_id) == news.incarnation:
                last = 0
                self._put_down(instance, "it was given up, and is alive")
                continue
            if self._incarnations.get(instance.instance_id) != news.incarnation:
                self._lost(instance, "it was restarted")
                self._up(instance, news)
            last = news.last
            with self._lock:
                if not self._is_ours(instance):
                    return
                self.steps[instance.instance_id] = news.steps
                if news.load is not None:
                    self.loads[instance.instance_id] = news.load
            try:
                self._take(instance, news)
            except Exception:
                log.exception("what instance %d said could not be handled", instance.instance_id)

    def _is_ours(self, instance: Instance) -> bool:
        return self._instances.get(instance.instance_id) is instance

    def _take(self, instance: Instance, news: News) -> None:
        strangers = []
        for item in news.items:
            match item:
                case Chunk():
                    if not self._deliver(instance.instance_id, item):
                        strangers.append(item.request_id)
                case Moved():
                    self._moved(item)
                case Resumed():
                    self._resumed(item)
                case Unknown():
                    if (stream := self._streams.get(item.request_id)) is not None:
                        self._later(self._settle, [stream])
                case Notice():
                    self._note(item)
        if strangers:
            self._later(self._tell_abort, instance, strangers)

    def _deliver(self, instance_id: int, chunk: Chunk) -> bool:
        """Give a chunk to its client; False if nobody wants it and its instance should stop."""
        now_s = time.time()
        with self._lock:
            stream = self._streams.get(chunk.request_id)
            if stream is None:
                return chunk.finish_reason is not None
            life = stream.life
            if chunk.attempt != life.delivery.attempt:
                self.duplicates += 1
                return True  # settled with the replay
            life.visited.add(instance_id)
            if chunk.hops >= life.hops:
                life.instance_last, life.hops = instance_id, chunk.hops
            life.exec_s += chunk.exec_s
            self._give(stream, chunk, now_s)
        return True

    def _give(self, stream: Stream, chunk: Chunk, now_s: float) -> None:
        """Pass on what is new in a chunk."""
        life = stream.life
        given = life.delivery.accept(chunk)
        if not given and chunk.first_index + len(chunk.tokens) <= len(life.delivery.tokens):
            self.duplicates += 1
        for part in given:
            self._stamp(life, part, now_s)
            if part.tokens:
                self.delivered += len(part.tokens)
                stream.put(part)
        if life.delivery.finish_reason is not None:
            self._end(stream, StreamEnd(life.delivery.finish_reason))

    def _stamp(self, life: Life, chunk: Chunk, now_s: float) -> None:
        if not chunk.tokens:
            return
        if life.first_token_s is None:
            life.first_token_s = now_s
        elif life.last_token_s is not None:
            life.max_token_gap_s = max(life.max_token_gap_s or 0.0, now_s - life.last_token_s)
        if life.preempted_since_s is not None:
            life.preemption_loss_s += max(0.0, now_s - life.preempted_since_s - life.step_s)
            life.preempted_since_s = None
        life.last_token_s = now_s
        life.step_s = chunk.step_s

    def _moved(self, moved: Moved) -> None:
        with self._lock:
            stream = self._streams.get(moved.request_id)
            life = self._ended.get(moved.request_id) if stream is None else stream.life
            if life is None:
                return
            life.migrations += 1
            life.migration_downtime_s += moved.downtime_s
            life.visited.add(moved.destination)
            if stream is None:
                return  # its last tokens were here before the word that it has moved
            if moved.tag.attempt != life.delivery.attempt:
                return
            if moved.tag.hops >= life.hops:
                life.instance_last, life.hops = moved.destination, moved.tag.hops
            known = self._incarnations.get(moved.destination)
            gone = moved.destination in self._down or known != moved.incarnation
        if gone:
            self._later(self._settle, [stream])

    def _resumed(self, item: Resumed) -> None:
        """A moved request goes on. What is computed again stands still until its next token."""
        with self._lock:
            stream = self._streams.get(item.request_id)
            if stream is not None and item.attempt == stream.life.delivery.attempt:
                stream.life.migration_gap_s += item.gap_s
                stream.life.migration_downtime_s += item.wait_s

    def _note(self, notice: Notice) -> None:
        with self._lock:
            self.notices.append(notice)
            if notice.kind != "preempt" or notice.request_id is None:
                return
            stream = self._streams.get(notice.request_id)
            life = self._ended.get(notice.request_id) if stream is None else stream.life
            if life is not None:
                life.preemptions += 1
                life.preempted_since_s = notice.time_s

    # --- faults

    def _up(self, instance: Instance, news: News) -> None:
        with self._news, self._lock:
            if not self._is_ours(instance):
                return
            self._incarnations[instance.instance_id] = news.incarnation
            self._down.discard(instance.instance_id)
            self.notices.append(Notice(time.time(), "instance_up", instance.instance_id))
            self._news.notify_all()

    def _put_down(self, instance: Instance, reason: str) -> None:
        """An instance that hangs is ended for good, so that it cannot come back with what others now do."""
        if not self._is_ours(instance):
            return
        log.warning("instance %d hangs (%s): it is restarted", instance.instance_id, reason)
        try:
            instance.kill()
        except LinkError as error:
            log.debug("instance %d could not be killed: %s", instance.instance_id, error)
        self._lost(instance, reason)
        self._closed.wait(0.2)

    def _lost(self, instance: Instance, reason: str) -> None:
        """Start what was on a dead instance again elsewhere.

        What had moved on may still lack tokens that only the dead instance had: its new instance knows them.
        """
        instance_id = instance.instance_id
        with self._lock:
            incarnation = self._incarnations.pop(instance_id, None)
            if incarnation is None:
                return  # known, or never up
            self._given_up[instance_id] = incarnation
            self._down.add(instance_id)
            self._steps_before += self.steps.pop(instance_id, 0)
            self.notices.append(Notice(time.time(), "instance_down", instance_id, None, reason))
            there = [s for s in self._streams.values() if instance_id in s.life.visited]
        log.warning("instance %d is gone (%s): %d requests have been there", instance_id, reason, len(there))
        try:
            self._dispatcher.instance_down(instance_id)
        except LinkError as error:
            log.debug("the global scheduler was not told: %s", error)
        if there:
            self._later(self._settle, there)

    def _settle(self, streams: Sequence[Stream]) -> None:
        """Find the requests on the instances that are up; what nobody has is started again, or fails.

        Only of what nobody has do they then promise that they will not take it, should it still be on its way: a
        request that somebody has can go on moving to all of them.
        """
        with self._lock:
            wanted = {s.life.request.request_id: s for s in streams if not s.ended.is_set()}
            attempts = {request_id: stream.life.delivery.attempt for request_id, stream in wanted.items()}
        for renounce in (False, True):
            for instance in self._instances.values():
                if attempts and instance.instance_id not in self._down:
                    self._ask_for(instance, wanted, attempts, renounce)
        for request_id, attempt in attempts.items():
            self._start_again(wanted[request_id], attempt)

    def _ask_for(self, instance: Instance, wanted: dict[str, Stream], attempts: dict[str, int], renounce: bool) -> None:
        """Take what the instance has out of `attempts`."""
        try:
            owned = instance.settle(attempts, renounce)
        except InstanceLost as error:
            return self._lost(instance, str(error))
        except NoAnswer as error:
            return self._put_down(instance, str(error))
        with self._lock:
            for request_id, prior in owned.items():
                stream, attempt = wanted[request_id], attempts.pop(request_id)
                stream.life.instance_last = instance.instance_id
                stream.life.visited.add(instance.instance_id)
                if not stream.ended.is_set():
                    self._give(stream, Chunk(request_id, attempt, 0, prior), time.time())
        return None

    def _start_again(self, stream: Stream, attempt: int) -> None:
        life = stream.life
        with self._lock:
            if stream.ended.is_set() or life.delivery.attempt != attempt:
                return
            if self._on_loss is OnLoss.fail:
                return self._fail(stream, f"instance {life.instance_last} was lost")
            life.delivery.replay(next(self._attempts))
            life.replays += 1
            life.instance_last, life.hops = None, 0
        self._later(self._dispatch, stream)
        return None

    def _tell_abort(self, instance: Instance, request_ids: list[str]) -> None:
        try:
            instance.abort(request_ids)
        except LinkError as error:
            log.debug("instance %d was not told to abort: %s", instance.instance_id, error)

    def _fail(self, stream: Stream, error: str) -> None:
        with self._lock:
            self._end(stream, StreamEnd("error", error))

    def _end(self, stream: Stream, end: StreamEnd) -> None:
        life = stream.life
        if self._streams.pop(life.request.request_id, None) is None:
            return
        life.end_s = life.last_token_s if end.finish_reason in ("stop", "length") else time.time()
        life.finish_reason, life.error = end.finish_reason, end.error
        self._ended[life.request.request_id] = life
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
        stream.put(end)

    def _later(self, function: Callable[..., None], *arguments: object) -> None:
        """Run in the pool, unless the front end has been closed; what goes wrong there must not vanish."""

        def guarded() -> None:
            try:
                function(*arguments)
            except Exception:
                log.exception("%s failed", function)

        with contextlib.suppress(RuntimeError):  # closed
            self._senders.submit(guarded)
