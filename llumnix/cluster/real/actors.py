"""Ray around llumlets and the global scheduler: actors, and proxies that give every call its time limit.

All actors of a cluster carry a name in one namespace, by which they find each other, also after a restart. What is
frequent, or waited for, goes from process to process (calls.py); Ray says where they listen, and carries what is rare
or large: KV blocks between nodes go through its object store.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from llumnix.cluster.real.calls import CallLink, CallServer
from llumnix.cluster.real.collector import spare_what_is_here
from llumnix.cluster.real.control import Control, NoInstance
from llumnix.cluster.real.llumlet import Llumlet
from llumnix.cluster.real.messages import (
    Accepted,
    Address,
    Arrival,
    InstanceLost,
    Landing,
    LinkError,
    MoveOutcome,
    News,
    NoAnswer,
    Refused,
    Step,
    Submission,
    Tag,
)
from llumnix.cluster.real.news_socket import NewsClient, NewsServer
from llumnix.cluster.real.reports import Reports
from llumnix.cluster.real.spec import Limits
from llumnix.engines.base import Engine, Parcel
from llumnix.policies.migration import MigrationPolicy, Pair
from llumnix.policies.scaling import Decision
from llumnix.policies.spec import Scheduler
from llumnix.request import Priority

log = logging.getLogger(__name__)
SCHEDULER = "scheduler"
GROUPS = {"run": 1, "receive": 4, "migrate": 2, "watch": 1}
"""Threads of a llumlet's actor by kind of call, so that no kind waits for another."""

GATHER_S = 0.005
"""Tokens of steps that are shorter than this leave together."""


@dataclass(kw_only=True, frozen=True, slots=True)
class ActorOptions:
    """What Ray has to know to place and restart an instance."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    max_restarts: int = -1


def instance_name(instance_id: int) -> str:
    """Name of an instance's actor."""
    return f"instance-{instance_id}"


class LlumletActor:
    """The process of one instance. Methods are those of Llumlet that go through Ray; it answers the others as calls."""

    def __init__(
        self,
        instance_id: int,
        namespace: str,
        build: Callable[[int], Engine],
        limits: Limits,
        record_steps: bool,
        transports: Sequence[str],
        log_level: int,
    ) -> None:
        logging.basicConfig(level=log_level, format=f"%(asctime)s instance {instance_id} %(levelname)s %(message)s")
        scheduler = _Named(SCHEDULER, namespace)
        reports = Reports(lambda: scheduler.ask("call_address", limits.control_s))
        self._llumlet = Llumlet(
            instance_id,
            build(instance_id),
            report=reports.send,
            peer=lambda other: RayInstance(other, namespace, limits),
            limits=limits,
            node=ray.get_runtime_context().get_node_id(),
            on_failure=lambda _: os._exit(1),
        )
        spare_what_is_here()
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._news = NewsServer(self._llumlet.news, host, gather_s=GATHER_S, silence_s=limits.poll_s)
        self._llumlet.push = lambda at_once: self._news.push(at_once=at_once)
        front_end = ("submit", "abort", "settle", "set_draining", "is_empty")
        sources = ("reserve", "extend", "expect", "land", "cancel")
        called = {name: getattr(self._llumlet, name) for name in (*front_end, *sources)}
        self._calls = CallServer(called, host)
        self._llumlet.start()
        if record_steps or transports:
            self._llumlet.begin_run(record_steps=record_steps, transports=transports)

    @ray.method(concurrency_group="watch")
    def news_address(self) -> Address:
        return self._news.address

    @ray.method(concurrency_group="watch")
    def call_address(self) -> Address:
        return self._calls.address

    @ray.method(concurrency_group="run")
    def begin_run(self, record_steps: bool, transports: Sequence[str]) -> None:
        self._llumlet.begin_run(record_steps=record_steps, transports=transports)

    @ray.method(concurrency_group="run")
    def steps(self) -> list[Step]:
        return self._llumlet.steps()

    @ray.method(concurrency_group="migrate")
    def migrate_out(self, destination: int, policy: MigrationPolicy) -> MoveOutcome:
        return self._llumlet.migrate_out(destination, policy)

    @ray.method(concurrency_group="receive")
    def receive(self, request_id: str, tag: Tag, first_block: int, parcels: list[Parcel]) -> bool:
        return self._llumlet.receive(request_id, tag, first_block, parcels)

    @ray.method(concurrency_group="watch")
    def pid(self) -> int:
        return os.getpid()

    @ray.method(concurrency_group="watch")
    def close(self) -> None:
        """End serving, and free what outlives a process that is killed: shared memory."""
        self._llumlet.stop()


class SchedulerActor:
    """The process of the global scheduler, which answers calls to Control.

    Its state is what instances report, so a restart needs nothing else.
    """

    def __init__(self, namespace: str, scheduler: Scheduler, limits: Limits, instances: int, log_level: int) -> None:
        logging.basicConfig(level=log_level, format="%(asctime)s scheduler %(levelname)s %(message)s")
        self._namespace = namespace
        self._limits = limits
        self._policy = scheduler.migration
        self._movers = ThreadPoolExecutor(max_workers=max(1, instances), thread_name_prefix="mover")
        self._control = Control(scheduler, self._start_migration)
        control = self._control
        called = (control.report, control.dispatch, control.instance_down, control.scaling_check, control.may_terminate)
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._calls = CallServer({method.__name__: method for method in (*called, control.traffic)}, host)
        spare_what_is_here()
        threading.Thread(target=control.run, name="rounds", daemon=True).start()

    def call_address(self) -> Address:
        return self._calls.address

    def pid(self) -> int:
        return os.getpid()

    def _start_migration(self, pair: Pair, ended: Callable[[bool], None]) -> None:
        def carry_out() -> None:
            moved = False
            try:
                source = RayInstance(pair.source, self._namespace, self._limits)
                moved = source.migrate_out(pair.destination, self._policy).moved
            except Exception as error:
                log.warning("migration %d to %d: %s", pair.source, pair.destination, error)
            finally:
                ended(moved)

        self._movers.submit(carry_out)


class RayInstance:
    """An instance behind Ray: a Peer for sources, an Instance for front ends."""

    def __init__(self, instance_id: int, namespace: str, limits: Limits) -> None:
        self.instance_id = instance_id
        self._limits = limits
        self._actor = _Named(instance_name(instance_id), namespace)
        self._calls = _Calls(self._actor, limits)
        self._news: NewsClient | None = None

    def submit(self, submission: Submission) -> None:
        self._calls.ask("submit", self._limits.control_s, submission)

    def abort(self, request_ids: list[str]) -> None:
        self._calls.ask("abort", self._limits.control_s, request_ids)

    def settle(self, attempts: dict[str, int], renounce: bool) -> dict[str, tuple[int, ...]]:
        owned: dict[str, tuple[int, ...]] = self._calls.ask("settle", self._limits.control_s, attempts, renounce)
        return owned

    def poll(self, after: int, limit_s: float) -> News:
        if self._news is None:
            self._news = NewsClient(self._actor.ask("news_address", limit_s), limit_s)
        try:
            return self._news.poll(after, limit_s)
        except LinkError:
            self._hang_up()
            raise

    def set_draining(self, draining: bool) -> None:
        self._calls.ask("set_draining", self._limits.control_s, draining)

    def is_empty(self) -> bool:
        return bool(self._calls.ask("is_empty", self._limits.control_s))

    def begin_run(self, *, record_steps: bool, transports: Sequence[str]) -> None:
        """Forget all requests of the run before; what it has not read of the news is not this run's business."""
        self._hang_up()
        self._actor.ask("begin_run", self._limits.start_s, record_steps, transports)

    def steps(self) -> list[Step]:
        """Return the steps of this run, if they are recorded."""
        steps: list[Step] = self._actor.ask("steps", self._limits.copy_s)
        return steps

    def migrate_out(self, destination: int, policy: MigrationPolicy) -> MoveOutcome:
        outcome: MoveOutcome = self._actor.ask("migrate_out", 2 * self._limits.migration_s, destination, policy)
        return outcome

    def reserve(self, arrival: Arrival) -> Accepted | Refused:
        answer: Accepted | Refused = self._calls.ask("reserve", self._limits.control_s, arrival)
        return answer

    def extend(self, request_id: str, tag: Tag, blocks: int) -> bool:
        return bool(self._calls.ask("extend", self._limits.control_s, request_id, tag, blocks))

    def receive(self, request_id: str, tag: Tag, first_block: int, parcels: list[Parcel]) -> bool:
        """Send parcels through Ray: those that hold their bytes are large."""
        return bool(self._actor.ask("receive", self._limits.copy_s, request_id, tag, first_block, parcels))

    def expect(self, request_id: str, tag: Tag) -> None:
        self._calls.tell("expect", self._limits.control_s, request_id, tag)

    def land(self, landing: Landing) -> bool:
        return bool(self._calls.ask("land", self._limits.copy_s, landing))

    def cancel(self, request_id: str, tag: Tag) -> None:
        self._calls.ask("cancel", self._limits.control_s, request_id, tag)

    def pid(self) -> int:
        """Return the process id; for tests that kill it."""
        return int(self._actor.ask("pid", self._limits.start_s))

    def kill(self) -> None:
        """End the process at once; Ray starts a new one."""
        self._actor.kill()

    def _hang_up(self) -> None:
        """Begin anew: what answers from now on may be another process."""
        self._calls.hang_up()
        if self._news is not None:
            self._news.close()
            self._news = None


class RayDispatcher:
    """The global scheduler behind Ray."""

    def __init__(self, namespace: str, limits: Limits) -> None:
        self._limits = limits
        self._actor = _Named(SCHEDULER, namespace)
        self._calls = _Calls(self._actor, limits)

    def dispatch(self, priority: Priority) -> int:
        try:
            return int(self._calls.ask("dispatch", self._limits.control_s, priority))
        except NoInstance as none:
            raise LinkError(str(none)) from None

    def instance_down(self, instance_id: int) -> None:
        self._calls.ask("instance_down", self._limits.control_s, instance_id)

    def scaling_check(self, instance_ids: Collection[int]) -> Decision | None:
        decision: Decision | None = self._calls.ask("scaling_check", self._limits.control_s, list(instance_ids))
        return decision

    def may_terminate(self, instance_id: int) -> bool:
        return bool(self._calls.ask("may_terminate", self._limits.control_s, instance_id))

    def traffic(self) -> dict[str, int]:
        """Return the counts of control messages."""
        counts: dict[str, int] = self._calls.ask("traffic", self._limits.control_s)
        return counts

    def pid(self) -> int:
        """Return the process id; for tests that kill it."""
        return int(self._actor.ask("pid", self._limits.start_s))

    def kill(self) -> None:
        """End the process at once; Ray starts a new one."""
        self._calls.hang_up()
        self._actor.kill()


class _Calls:
    """Calls to the process of an actor, past Ray, which only says where that listens. Thread-safe."""

    def __init__(self, actor: _Named, limits: Limits) -> None:
        self._actor = actor
        self._limits = limits
        self._link: CallLink | None = None

    def ask(self, method: str, limit_s: float, *arguments: Any) -> Any:
        """Call a method and wait for its answer. Raises InstanceLost, NoAnswer, or what the method raised."""
        with self._linked(limit_s) as link:
            return link.ask(method, limit_s, *arguments)

    def tell(self, method: str, limit_s: float, *arguments: Any) -> None:
        """Call a method without waiting for it to be done; InstanceLost if the other side is known to have gone."""
        with self._linked(limit_s) as link:
            link.tell(method, limit_s, *arguments)

    def hang_up(self) -> None:
        """Look the process up again for the next call."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    @contextmanager
    def _linked(self, limit_s: float) -> Iterator[CallLink]:
        link = self._link
        if link is None:
            link = self._link = CallLink(self._actor.ask("call_address", limit_s))
        try:
            yield link
        except (InstanceLost, NoAnswer):
            if self._link is link:
                self.hang_up()
            raise


class _Named:
    """An actor found by its name, and its errors in our own words."""

    def __init__(self, name: str, namespace: str) -> None:
        self._name = name
        self._namespace = namespace
        self._handle: ActorHandle[Any] | None = None

    def ask(self, method: str, limit_s: float, *arguments: Any) -> Any:
        """Call a method and wait for its answer. Raises InstanceLost, NoAnswer, or what the method raised.

        Both leave open whether the other side has acted: Ray also calls an actor lost that it cannot reach just now.
        """
        try:
            if self._handle is None:
                self._handle = ray.get_actor(self._name, namespace=self._namespace)
            return ray.get(getattr(self._handle, method).remote(*arguments), timeout=limit_s)
        except GetTimeoutError:
            raise NoAnswer(f"{self._name} did not answer {method} within {limit_s:g} s") from None
        except RayTaskError as error:
            raise error.cause from None
        except (RayActorError, ValueError) as error:
            self._handle = None  # the name may be another actor's by now
            raise InstanceLost(f"{self._name}: {str(error).splitlines()[0]}") from None
        except RayError as error:  # an answer that got lost on its way, a full object store
            raise NoAnswer(f"{self._name} did not answer {method}: {str(error).splitlines()[0]}") from None

    def kill(self) -> None:
        """End the process; Ray restarts it as often as its options say."""
        try:
            handle = self._handle or ray.get_actor(self._name, namespace=self._namespace)
            ray.kill(handle, no_restart=False)
        except (RayActorError, ValueError) as error:
            raise InstanceLost(str(error)) from None


def start_scheduler(
    namespace: str, scheduler: Scheduler, limits: Limits, instances: int, log_level: int = logging.WARNING
) -> ActorHandle[Any]:
    """Start the global scheduler; returns at once. The actor lives as long as the handle."""
    actor: Any = _remote(SchedulerActor)
    options = {"name": SCHEDULER, "namespace": namespace, "num_cpus": 0, "max_restarts": -1}
    handle: ActorHandle[Any] = actor.options(**options).remote(namespace, scheduler, limits, instances, log_level)
    return handle


def start_instance(
    instance_id: int,
    namespace: str,
    build: Callable[[int], Engine],
    limits: Limits,
    options: ActorOptions,
    *,
    record_steps: bool = False,
    transports: Sequence[str] = (),
    log_level: int = logging.WARNING,
) -> ActorHandle[Any]:
    """Start an instance; returns at once. The actor lives as long as the handle."""
    actor: Any = _remote(concurrency_groups=GROUPS)(LlumletActor)
    handle: ActorHandle[Any] = actor.options(
        name=instance_name(instance_id),
        namespace=namespace,
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
        max_restarts=options.max_restarts,
    ).remote(instance_id, namespace, build, limits, record_steps, transports, log_level)
    return handle


_remote: Any = ray.remote  # its types know no concurrency groups
