"""The instances of a real cluster as they come and go: the global scheduler decides, this carries it out.

It lives with the front end, whose word it takes for who is up, and acts in one thread. The scheduler remembers nothing
for it: every question names the instances that there are, and which of them drain is known by their reports. Either of
the two can so be lost at any moment of a start or a drain, and what was begun goes on or is begun again.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Collection, Sequence
from typing import Protocol

from llumnix.cluster.real.front_end import FrontEnd
from llumnix.cluster.real.links import Instance
from llumnix.cluster.real.messages import LinkError
from llumnix.cluster.result import Columns
from llumnix.cluster.sizes import Sizes, carry_out
from llumnix.policies.scaling import Decision, ScalingPolicy

log = logging.getLogger(__name__)
TICK_S = 0.1
"""How often it looks who is up and who is empty."""


class Host(Protocol):
    """Where instances run."""

    def start_instance(self, instance_id: int) -> Instance:
        """Start an instance and return at once."""

    def end_instance(self, instance_id: int) -> None:
        """End it, for good, and free its device."""

    def start_failure(self, instance_id: int) -> str | None:
        """Say why an instance cannot come up; None as long as it may."""


class Decider(Protocol):
    """The global scheduler, as a fleet sees it."""

    def scaling_check(self, instance_ids: Collection[int]) -> Decision | None: ...
    def may_terminate(self, instance_id: int) -> bool: ...
    def instance_down(self, instance_id: int) -> None: ...


class Fleet:
    """`instances` to begin with, which are up.

    An instance that is not up, for the first time or again after a fault, counts as starting; after `start_limit_s`,
    or when its host says that it cannot start, it is ended. One that dies while it drains is not waited for.
    """

    def __init__(
        self,
        front_end: FrontEnd,
        scheduler: Decider,
        host: Host,
        policy: ScalingPolicy,
        instances: Sequence[Instance],
        *,
        start_limit_s: float,
    ) -> None:
        self._front_end = front_end
        self._scheduler = scheduler
        self._host = host
        self._policy = policy
        self._start_limit_s = start_limit_s
        self._instances = {instance.instance_id: instance for instance in instances}
        self._ids = itertools.count(len(instances))  # given once
        self._starting: dict[int, float] = {}  # when it is given up
        self._draining: set[int] = set()
        self._sizes = Sizes()
        self._begun_s = self._check_s = 0.0
        self._known = (0, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)

    def begin(self, start_s: float) -> None:
        """Open the account, and look after the instances from `start_s` (wall-clock time) on."""
        for instance_id in self._instances:
            self._front_end.note("instance_up", instance_id, time_s=start_s)
        self._begun_s, self._check_s = start_s, start_s + self._policy.first_check_s
        self._count(start_s)
        self._thread.start()

    def end(self) -> Columns:
        """Let everything be as it is from now on, and return the account of how many instances there were."""
        self.close()
        self._count(time.time())
        return self._sizes.columns()

    def close(self) -> None:
        """Start and end no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    # --- what a decision asks for

    def start(self) -> int:
        """Start one more instance and return its id."""
        instance_id = next(self._ids)
        self._instances[instance_id] = self._host.start_instance(instance_id)
        self._front_end.add(self._instances[instance_id])
        self._starting[instance_id] = time.time() + self._start_limit_s
        return instance_id

    def set_draining(self, instance_id: int, draining: bool) -> None:
        """Let an instance give its requests away and end, or let it stay; it is told when it is looked at next."""
        (self._draining.add if draining else self._draining.discard)(instance_id)

    def note(self, kind: str, instance_id: int, detail: str) -> None:
        """Add an event."""
        self._front_end.note(kind, instance_id, detail)

    # --- inside

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            try:
                self._tick(time.time())
            except Exception:  # requests are still served; and what is wrong may pass
                log.exception("instances could not be looked after")

    def _tick(self, now_s: float) -> None:
        for instance_id in list(self._instances):
            self._look_at(instance_id, now_s)
        if now_s >= self._check_s:
            self._check_s = max(self._check_s + self._policy.check_period_s, now_s)
            self._check()
        for instance_id in list(self._instances):
            if instance_id not in self._starting:
                self._see_to_drain(instance_id)
        if self._known != (len(self._starting), len(self._instances)):
            self._count(now_s)

    def _look_at(self, instance_id: int, now_s: float) -> None:
        if self._front_end.is_up(instance_id):
            self._starting.pop(instance_id, None)
            return
        if instance_id in self._draining:  # its requests have been started again elsewhere
            return self._end(instance_id)
        give_up_s = self._starting.setdefault(instance_id, now_s + self._start_limit_s)
        reason = self._host.start_failure(instance_id)
        if reason is None and now_s >= give_up_s:
            reason = f"it was not up after {self._start_limit_s:g} s"
        if reason is not None:
            log.warning("instance %d is given up: %s", instance_id, reason)
            self._end(instance_id, reason)
        return None

    def _check(self) -> None:
        missing = self._policy.min_instances - len(self._instances)
        if missing > 0:
            for _ in range(missing):
                self.note("scale_up", self.start(), "fewer than min_instances")
            return
        try:
            decision = self._scheduler.scaling_check(sorted(self._instances))
        except LinkError as error:
            log.warning("the number of instances stays, the global scheduler does not answer: %s", error)
            return
        if decision is not None:
            carry_out(decision, self)

    def _see_to_drain(self, instance_id: int) -> None:
        """Tell an instance whether to drain until it says the same; end it once it is empty."""
        load, draining = self._front_end.loads.get(instance_id), instance_id in self._draining
        if load is None:
            return
        try:
            if load.draining is not draining:
                self._instances[instance_id].set_draining(draining)
            elif draining and load.running == load.waiting == 0 and self._is_done(instance_id):
                self._end(instance_id)
        except LinkError as error:  # it is asked again
            log.debug("the drain of instance %d waits: %s", instance_id, error)

    def _is_done(self, instance_id: int) -> bool:
        return self._scheduler.may_terminate(instance_id) and self._instances[instance_id].is_empty()

    def _end(self, instance_id: int, reason: str | None = None) -> None:
        del self._instances[instance_id]
        self._draining.discard(instance_id)
        self._starting.pop(instance_id, None)
        self._front_end.remove(instance_id, reason)
        self._host.end_instance(instance_id)
        try:
            self._scheduler.instance_down(instance_id)
        except LinkError as error:
            log.debug("the global scheduler was not told: %s", error)

    def _count(self, now_s: float) -> None:
        self._known = starting, total = len(self._starting), len(self._instances)
        time_s = max(0.0, now_s - self._begun_s)
        self._sizes.count(time_s, starting, total - starting, self._front_end.steps_completed())
