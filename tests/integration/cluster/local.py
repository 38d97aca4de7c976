"""A whole cluster in one process: llumlets in threads, the real scheduler, and links that can be cut."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fake_engine import FakeEngine, expected_tokens

from llumnix.cluster.real.control import Control, NoInstance
from llumnix.cluster.real.fleet import Fleet
from llumnix.cluster.real.front_end import FrontEnd, Stream
from llumnix.cluster.real.llumlet import Llumlet
from llumnix.cluster.real.messages import InstanceLost, LinkError, MoveOutcome, NoAnswer
from llumnix.cluster.real.spec import Limits, OnLoss
from llumnix.engines.base import EngineRequest
from llumnix.load import InstanceLoad
from llumnix.policies.migration import MigrationPolicy, Pair
from llumnix.policies.scaling import Decision, ScalingPolicy
from llumnix.policies.spec import Scheduler
from llumnix.request import Priority

LIMITS = Limits(control_s=1.0, copy_s=1.0, migration_s=5.0, poll_s=0.05, step_s=1.0, reservation_s=0.5, start_s=5.0)


class Link:
    """An instance whose process can be killed and comes back empty, and whose messages can be lost.

    `before` and `after` are called around every message with its name: what they raise is what the caller sees.
    `cut` is what the front end alone sees of every message, and `unkillable` keeps its kill from arriving as well.
    """

    def __init__(self, cluster: LocalCluster, instance_id: int, *, up: bool = True) -> None:
        self.cluster = cluster
        self.instance_id = instance_id
        self.before: Callable[[str], None] = lambda name: None
        self.after: Callable[[str], None] = lambda name: None
        self.cut: type[LinkError] | None = None
        self.unkillable = False
        self.dead = not up
        self.ended = False
        self.kills = 0
        self.calls: list[str] = []
        self.llumlet = self._start()
        self.llumlet.thread._stopping = self.dead

    def end(self) -> None:
        """As kill -9, and nobody restarts it."""
        self.ended = True
        self.kill()

    def kill(self) -> None:
        """As kill -9: nothing of it is left; restart() brings an empty one, by itself if the cluster restarts."""
        if self.dead:
            return
        self.dead = True
        self.kills += 1
        self.llumlet.thread._stopping = True
        if self.cluster.restart_s is not None and not self.ended:
            threading.Timer(self.cluster.restart_s, self.restart).start()

    def restart(self) -> None:
        if self.ended:
            return
        self.llumlet = self._start()
        self.dead = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if self.dead:
                raise InstanceLost(f"instance {self.instance_id} is dead")
            llumlet = self.llumlet
            self.before(name)
            if self.dead:
                raise InstanceLost(f"instance {self.instance_id} died before it heard of it")
            result = getattr(llumlet, name)(*arguments)
            self.after(name)
            if self.dead or llumlet is not self.llumlet:
                raise InstanceLost(f"instance {self.instance_id} died meanwhile")
            return result

        return call

    def _start(self) -> Llumlet:
        cluster = self.cluster
        llumlet = Llumlet(
            self.instance_id,
            cluster.build(self.instance_id),
            report=lambda load: None if self.dead else cluster.report(load),
            peer=lambda other: _Outgoing(self, cluster.links[other]),
            limits=cluster.limits,
            report_period_s=0.002,
            heartbeat_s=0.05,
            on_failure=lambda _: self.kill(),
        )
        llumlet.start()
        return llumlet

    @property
    def engine(self) -> FakeEngine:
        engine = self.llumlet._engine
        assert isinstance(engine, FakeEngine)
        return engine


class _Outgoing:
    """What a source says to another instance: nothing any more, once it is dead."""

    def __init__(self, source: Link, link: Link) -> None:
        self._source = source
        self._kills = source.kills
        self._link = link

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._if_alive()
            try:
                return getattr(self._link, name)(*arguments)
            finally:
                self._if_alive()

        return call

    def _if_alive(self) -> None:
        if self._source.kills != self._kills:
            raise SystemExit("the process of the source is gone")


class _FrontEndLink:
    """The front end's end of a link, which can be cut by itself: instances still reach each other."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.instance_id = link.instance_id

    def kill(self) -> None:
        if self._link.unkillable:
            raise NoAnswer("the kill was lost")
        self._link.kill()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._if_whole()
            result = getattr(self._link, name)(*arguments)
            self._if_whole()
            return result

        return call

    def _if_whole(self) -> None:
        if self._link.cut is not None:
            raise self._link.cut("the link is cut")


class LocalCluster:
    """`instances` fake engines, a global scheduler in its own thread if migration is on, and a front end.

    With `scaling` instances come and go, each of them up `startup_s` after it was started. A killed instance comes
    back after `restart_s`, if that is given. `pinned`, if set, is where new requests start.
    """

    def __init__(
        self,
        instances: int = 2,
        *,
        build: Callable[[int], FakeEngine] = lambda _: FakeEngine(),
        migration: MigrationPolicy | None = None,
        on_loss: OnLoss = OnLoss.replay,
        limits: Limits = LIMITS,
        restart_s: float | None = None,
        scaling: ScalingPolicy | None = None,
        startup_s: float = 0.0,
    ) -> None:
        self.build = build
        self.restart_s = restart_s
        self.pinned: int | None = None
        self.limits = limits
        self.startup_s = startup_s
        self.start_failures: dict[int, str] = {}
        self.spec = Scheduler(migration=migration or MigrationPolicy(), scaling=scaling or ScalingPolicy())
        self.outcomes: list[MoveOutcome] = []
        self.scheduler_dead = False
        self.scheduler_hangs = False
        self.scheduler_kills = 0
        self._movers = ThreadPoolExecutor(self.spec.scaling.most(instances))
        self.control = self._new_control()
        self.links: list[Link] = []
        for instance_id in range(instances):
            self.links.append(Link(self, instance_id))
        ends = [_FrontEndLink(link) for link in self.links]
        self.front_end = FrontEnd(ends, self, limits=limits, on_loss=on_loss, bypass_s=0.05)
        self.front_end.start()
        self.fleet = Fleet(self.front_end, self, self, self.spec.scaling, ends, start_limit_s=limits.start_s)
        if self.spec.scaling.enabled:
            self.fleet.begin(time.time())

    def close(self) -> None:
        self.fleet.close()
        self.control.stop()
        self.front_end.close()
        for link in self.links:
            link.llumlet.thread.stop(1.0)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the scheduler's process

    def _new_control(self) -> Control:
        control = Control(self.spec, self._start_migration, report_limit_s=1.0)
        threading.Thread(target=control.run, daemon=True).start()
        return control

    def kill_scheduler(self) -> None:
        self.scheduler_dead = True
        self.control.stop()

    def restart_scheduler(self) -> None:
        self.control = self._new_control()
        self.scheduler_dead = False

    def kill(self) -> None:
        self.scheduler_kills += 1
        self.kill_scheduler()
        self.scheduler_hangs = False
        self.restart_scheduler()

    def report(self, load: InstanceLoad) -> None:
        self._if_scheduler_lives()
        self.control.report(load)

    def dispatch(self, priority: Priority) -> int:
        self._if_scheduler_lives()
        if self.scheduler_hangs:
            time.sleep(self.limits.control_s)
            raise NoAnswer("the scheduler hangs")
        if self.pinned is not None:
            return self.pinned
        try:
            return self.control.dispatch(priority)
        except NoInstance as error:
            raise LinkError(str(error)) from None

    def instance_down(self, instance_id: int) -> None:
        self._if_scheduler_lives()
        self.control.instance_down(instance_id)

    def scaling_check(self, instance_ids: Collection[int]) -> Decision | None:
        self._if_scheduler_lives()
        decision = self.control.scaling_check(instance_ids)
        self._if_scheduler_lives()  # else its answer is lost
        return decision

    def may_terminate(self, instance_id: int) -> bool:
        self._if_scheduler_lives()
        return self.control.may_terminate(instance_id)

    def _if_scheduler_lives(self) -> None:
        if self.scheduler_dead:
            raise InstanceLost("the scheduler is dead")

    def _start_migration(self, pair: Pair, ended: Callable[[bool], None]) -> None:
        def carry_out() -> None:
            outcome = MoveOutcome(False)
            try:
                outcome = self.links[pair.source].migrate_out(pair.destination, self.spec.migration)
            except (InstanceLost, NoAnswer) as error:
                outcome = MoveOutcome(False, reason=str(error))
            finally:
                self.outcomes.append(outcome)
                ended(outcome.moved)

        self._movers.submit(carry_out)

    # --- where instances run (Host)

    def start_instance(self, instance_id: int) -> _FrontEndLink:
        link = Link(self, instance_id, up=False)
        assert instance_id == len(self.links), "ids are given once"
        self.links.append(link)
        if instance_id not in self.start_failures:
            threading.Timer(self.startup_s, link.restart).start()
        return _FrontEndLink(link)

    def end_instance(self, instance_id: int) -> None:
        self.links[instance_id].end()

    def start_failure(self, instance_id: int) -> str | None:
        return self.start_failures.get(instance_id)

    # --- what tests do with it

    def submit(self, number: int, *, tokens: int = 40, prompt: int = 10, **sampling: object) -> Stream:
        request = EngineRequest(
            f"r{number}",
            tuple((number * 31 + i * 7) % 1000 for i in range(prompt)),
            {"max_tokens": tokens, **sampling},
            arrival_order=number,
            arrival_s=time.time(),
        )
        return self.front_end.submit(request)


def assert_exact(stream: Stream, limit_s: float = 10.0) -> None:
    """The stream has ended with exactly the tokens of an undisturbed run, each of them given once and in order."""
    assert stream.wait(limit_s), f"{stream.life.request.request_id} has not ended: {stream.life}"
    request = stream.life.request
    expected = expected_tokens(request.prompt, int(request.sampling["max_tokens"]))
    assert stream.life.error is None
    assert stream.tokens == expected
    assert [token for chunk in stream for token in chunk.tokens] == expected


def wait_until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    """Wait for something that other threads do."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come to that"
        time.sleep(0.002)


def no_leak(cluster: LocalCluster) -> None:
    """Nothing runs, waits or arrives anywhere, and every block is free."""

    def clean() -> bool:
        engines = [link.engine for link in cluster.links if not link.dead]
        return all(not e.running and not e.waiting and not e.arriving and len(e.free) == e.total for e in engines)

    wait_until(clean)
