"""Ray around llumlets and the global scheduler: actors, and proxies that give every call its time limit.

All actors of a cluster carry a name in one namespace, by which they find each other, also after a restart. Arguments
go from the caller's process to the actor's; large ones (KV blocks between nodes) through Ray's object store.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from llumnix.cluster.real.control import Control, NoInstance
from llumnix.cluster.real.landing_link import LandingLink, LandingServer
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
from llumnix.cluster.real.spec import Limits
from llumnix.engines.base import Engine, Parcel
from llumnix.load import InstanceLoad
from llumnix.policies.migration import MigrationPolicy, Pair
from llumnix.policies.scaling import Decision
from llumnix.policies.spec import Scheduler
from llumnix.request import Priority

log = logging.getLogger(__name__)
SCHEDULER = "scheduler"
GROUPS = {"serve": 32, "peer": 4, "migrate": 2, "watch": 1}
"""Threads of a llumlet's actor by kind of call, so that no kind waits for another.

A submission waits in its thread for the end of the engine's step: no more of them are taken per step.
"""

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
    """The process of one instance. Its methods are those of Llumlet."""

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
        reports = _Reports(namespace)
        self._llumlet = Llumlet(
            instance_id,
            build(instance_id),
            report=reports.send,
            peer=lambda other: RayInstance(other, namespace, limits),
            limits=limits,
            node=ray.get_runtime_context().get_node_id(),
            on_failure=lambda _: os._exit(1),
        )
        # What the engine consists of stays; without it a full collection takes no tenth of a second out of a step.
        gc.collect()
        gc.freeze()
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._news = NewsServer(self._llumlet.news, host, gather_s=GATHER_S, silence_s=limits.poll_s)
        self._llumlet.push = lambda at_once: self._news.push(at_once=at_once)
        self._llumlet.landings = LandingServer(self._llumlet.land, host, silence_s=limits.migration_s).address
        self._llumlet.start()
        if record_steps or transports:
            self._llumlet.begin_run(record_steps=record_steps, transports=transports)

    @ray.method(concurrency_group="serve")
    def submit(self, submission: Submission) -> None:
        self._llumlet.submit(submission)

    @ray.method(concurrency_group="serve")
    def abort(self, request_ids: list[str]) -> None:
        self._llumlet.abort(request_ids)

    @ray.method(concurrency_group="serve")
    def settle(self, attempts: dict[str, int], renounce: bool) -> dict[str, tuple[int, ...]]:
        return self._llumlet.settle(attempts, renounce)

    @ray.method(concurrency_group="watch")
    def news_address(self) -> Address:
        return self._news.address

    @ray.method(concurrency_group="serve")
    def begin_run(self, record_steps: bool, transports: Sequence[str]) -> None:
        self._llumlet.begin_run(record_steps=record_steps, transports=transports)

    @ray.method(concurrency_group="serve")
    def steps(self) -> list[Step]:
        return self._llumlet.steps()

    @ray.method(concurrency_group="serve")
    def set_draining(self, draining: bool) -> None:
        self._llumlet.set_draining(draining)

    @ray.method(concurrency_group="serve")
    def is_empty(self) -> bool:
        return self._llumlet.is_empty()

    @ray.method(concurrency_group="migrate")
    def migrate_out(self, destination: int, policy: MigrationPolicy) -> MoveOutcome:
        return self._llumlet.migrate_out(destination, policy)

    @ray.method(concurrency_group="peer")
    def reserve(self, arrival: Arrival) -> Accepted | Refused:
        return self._llumlet.reserve(arrival)

    @ray.method(concurrency_group="peer")
    def extend(self, request_id: str, tag: Tag, blocks: int) -> bool:
        return self._llumlet.extend(request_id, tag, blocks)

    @ray.method(concurrency_group="peer")
    def receive(self, request_id: str, tag: Tag, first_block: int, parcels: list[Parcel]) -> bool:
        return self._llumlet.receive(request_id, tag, first_block, parcels)

    @ray.method(concurrency_group="peer")
    def land(self, landing: Landing) -> bool:
        return self._llumlet.land(landing)

    @ray.method(concurrency_group="peer")
    def cancel(self, request_id: str, tag: Tag) -> None:
        self._llumlet.cancel(request_id, tag)

    @ray.method(concurrency_group="watch")
    def pid(self) -> int:
        return os.getpid()


class SchedulerActor:
    """The process of the global scheduler. Its state is what instances report, so a restart needs nothing else."""

    def __init__(self, namespace: str, scheduler: Scheduler, limits: Limits, instances: int, log_level: int) -> None:
        logging.basicConfig(level=log_level, format="%(asctime)s scheduler %(levelname)s %(message)s")
        self._namespace = namespace
        self._limits = limits
        self._policy = scheduler.migration
        self._movers = ThreadPoolExecutor(max_workers=max(1, instances), thread_name_prefix="mover")
        self._control = Control(scheduler, self._start_migration)
        threading.Thread(target=self._control.run, name="rounds", daemon=True).start()

    @ray.method(concurrency_group="report")
    def report(self, load: InstanceLoad) -> None:
        self._control.report(load)

    @ray.method(concurrency_group="ask")
    def dispatch(self, priority: Priority) -> int | None:
        try:
            return self._control.dispatch(priority)
        except NoInstance:
            return None

    @ray.method(concurrency_group="ask")
    def instance_down(self, instance_id: int) -> None:
        self._control.instance_down(instance_id)

    @ray.method(concurrency_group="ask")
    def scaling_check(self, instance_ids: list[int]) -> Decision | None:
        return self._control.scaling_check(instance_ids)

    @ray.method(concurrency_group="ask")
    def may_terminate(self, instance_id: int) -> bool:
        return self._control.may_terminate(instance_id)

    @ray.method(concurrency_group="ask")
    def traffic(self) -> dict[str, int]:
        return self._control.traffic()

    @ray.method(concurrency_group="ask")
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


class _Reports:
    """Load reports on their way: sent without waiting, and only while the one before has arrived."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._handle: ActorHandle[Any] | None = None
        self._pending: Any = None
        self._retry_s = 0.0

    def send(self, load: InstanceLoad) -> None:
        """Send a report; while the scheduler does not take any, drop it: a later one will say more."""
        now_s = time.monotonic()
        if now_s < self._retry_s:
            return
        try:
            if self._pending is not None:
                done, _ = ray.wait([self._pending], timeout=0)
                if not done:
                    return
                ray.get(self._pending)
            if self._handle is None:
                self._handle = ray.get_actor(SCHEDULER, namespace=self._namespace)
            self._pending = self._handle.report.remote(load)
        except (RayActorError, RayTaskError, ValueError) as error:
            self._handle = self._pending = None
            self._retry_s = now_s + 0.5
            raise NoAnswer(f"the global scheduler: {error}") from error


class RayInstance:
    """An instance behind Ray: a Peer for sources, an Instance for front ends."""

    def __init__(self, instance_id: int, namespace: str, limits: Limits) -> None:
        self.instance_id = instance_id
        self._limits = limits
        self._actor = _Named(instance_name(instance_id), namespace)
        self._news: NewsClient | None = None
        self._landing_link: LandingLink | None = None

    def submit(self, submission: Submission) -> None:
        self._actor.ask("submit", self._limits.control_s, submission)

    def abort(self, request_ids: list[str]) -> None:
        self._actor.ask("abort", self._limits.control_s, request_ids)

    def settle(self, attempts: dict[str, int], renounce: bool) -> dict[str, tuple[int, ...]]:
        owned: dict[str, tuple[int, ...]] = self._actor.ask("settle", self._limits.control_s, attempts, renounce)
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
        self._actor.ask("set_draining", self._limits.control_s, draining)

    def is_empty(self) -> bool:
        return bool(self._actor.ask("is_empty", self._limits.control_s))

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
        answer: Accepted | Refused = self._actor.ask("reserve", self._limits.control_s, arrival)
        if isinstance(answer, Accepted) and answer.landings is not None:
            try:
                self._landing_link = LandingLink(answer.landings, self._limits.control_s)
            except LinkError as error:
                log.warning("landings at instance %d go through Ray: %s", self.instance_id, error)
        return answer

    def extend(self, request_id: str, tag: Tag, blocks: int) -> bool:
        return bool(self._actor.ask("extend", self._limits.control_s, request_id, tag, blocks))

    def receive(self, request_id: str, tag: Tag, first_block: int, parcels: list[Parcel]) -> bool:
        return bool(self._actor.ask("receive", self._limits.copy_s, request_id, tag, first_block, parcels))

    def land(self, landing: Landing) -> bool:
        link, self._landing_link = self._landing_link, None
        if link is not None:
            return link.land(landing, self._limits.copy_s)
        return bool(self._actor.ask("land", self._limits.copy_s, landing))

    def cancel(self, request_id: str, tag: Tag) -> None:
        if self._landing_link is not None:
            self._landing_link.close()
        self._actor.ask("cancel", self._limits.control_s, request_id, tag)

    def pid(self) -> int:
        """Return the process id; for tests that kill it."""
        return int(self._actor.ask("pid", self._limits.start_s))

    def kill(self) -> None:
        """End the process at once; Ray starts a new one."""
        self._actor.kill()

    def _hang_up(self) -> None:
        if self._news is not None:
            self._news.close()
            self._news = None


class RayDispatcher:
    """The global scheduler behind Ray."""

    def __init__(self, namespace: str, limits: Limits) -> None:
        self._limits = limits
        self._actor = _Named(SCHEDULER, namespace)

    def dispatch(self, priority: Priority) -> int:
        instance_id = self._actor.ask("dispatch", self._limits.control_s, priority)
        if instance_id is None:
            raise LinkError("no instance has reported to the global scheduler")
        return int(instance_id)

    def instance_down(self, instance_id: int) -> None:
        self._actor.ask("instance_down", self._limits.control_s, instance_id)

    def scaling_check(self, instance_ids: Collection[int]) -> Decision | None:
        decision: Decision | None = self._actor.ask("scaling_check", self._limits.control_s, list(instance_ids))
        return decision

    def may_terminate(self, instance_id: int) -> bool:
        return bool(self._actor.ask("may_terminate", self._limits.control_s, instance_id))

    def traffic(self) -> dict[str, int]:
        """Return the counts of control messages."""
        counts: dict[str, int] = self._actor.ask("traffic", self._limits.control_s)
        return counts

    def pid(self) -> int:
        """Return the process id; for tests that kill it."""
        return int(self._actor.ask("pid", self._limits.start_s))

    def kill(self) -> None:
        """End the process at once; Ray starts a new one."""
        self._actor.kill()


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
    actor: Any = _remote(concurrency_groups={"report": 1, "ask": 4})(SchedulerActor)
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
