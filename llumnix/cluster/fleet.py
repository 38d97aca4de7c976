"""The instances of a simulated cluster as they come and go.

Decisions are all in llumnix.policies.scaling; here are only start-up times, drains and the end of drained instances.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from llumnix.cluster.result import Columns
from llumnix.cluster.sizes import Sizes, carry_out
from llumnix.engines.sim.cost import PS_PER_S, CostModel
from llumnix.engines.sim.instance import SimInstance
from llumnix.engines.sim.request import SimRequest
from llumnix.policies.scaling import ScaleUp, ScalingPolicy
from llumnix.scheduler import GlobalScheduler


class World(Protocol):
    """What a fleet needs of the cluster around it."""

    @property
    def now_ps(self) -> int: ...
    @property
    def cost(self) -> CostModel: ...
    def send(self, action: Callable[[], None], delay_ps: int) -> None: ...
    def note(
        self, kind: str, instance_id: int | None, request: SimRequest | None, detail: str | None = None
    ) -> None: ...


class Fleet:
    """All instances that there have been, by id, and those that are `up`: they serve, be it only to drain.

    An id is given once, in the order in which instances were asked for. `draining` holds the ids of those that are to
    be terminated.
    """

    def __init__(
        self,
        world: World,
        policy: ScalingPolicy,
        scheduler: GlobalScheduler,
        build: Callable[[int], SimInstance],
        instances: int,
    ) -> None:
        self._world = world
        self._policy = policy
        self._scheduler = scheduler
        self._build = build
        self._starting = 0
        self._sizes = Sizes()
        self.instances = [build(instance_id) for instance_id in range(instances)]
        self.up = list(self.instances)
        self.draining: set[int] = set()

    def begin(self) -> None:
        """Open the account; call once, at the start of the run."""
        for instance in self.up:
            self._world.note("instance_up", instance.instance_id, None)
        self._count()

    def check(self) -> None:
        """Ask the scheduler whether instances should come or go, and see to it."""
        decision = self._scheduler.scaling_check(self._starting)
        if decision is not None:
            carry_out(decision, self)
        if isinstance(decision, ScaleUp):
            self._count()

    def request_left(self, instance_id: int) -> None:
        """Note that a request, or the reservation for one, has left an instance: it may have been the last."""
        if instance_id in self.draining:
            self._world.send(partial(self._terminate_if_empty, instance_id), self._world.cost.control_ps)

    def sizes(self) -> Columns:
        """The account of how many instances there were, closed now."""
        self._count()
        return self._sizes.columns()

    # --- what a decision asks for

    def start(self) -> int:
        """Ask for one more instance and return its id."""
        instance = self._build(len(self.instances))
        self.instances.append(instance)
        self._starting += 1
        delay_ps = round(self._policy.startup_s * PS_PER_S) + self._world.cost.control_ps
        self._world.send(partial(self._serve, instance), delay_ps)
        return instance.instance_id

    def set_draining(self, instance_id: int, draining: bool) -> None:
        """Let an instance give its requests away and end, or let it stay."""
        self.instances[instance_id].set_draining(draining)
        (self.draining.add if draining else self.draining.discard)(instance_id)
        self.request_left(instance_id)

    def note(self, kind: str, instance_id: int, detail: str) -> None:
        """Add a row to the events."""
        self._world.note(kind, instance_id, None, detail)

    # --- inside

    def _serve(self, instance: SimInstance) -> None:
        self._starting -= 1
        self.up.append(instance)
        self._world.note("instance_up", instance.instance_id, None)
        self._scheduler.instance_up(instance.instance_id)
        self._count()

    def _terminate_if_empty(self, instance_id: int) -> None:
        instance = self.instances[instance_id]
        if instance.empty and self._scheduler.may_terminate(instance_id):
            self.draining.remove(instance_id)
            self.up.remove(instance)
            self._world.note("instance_down", instance_id, None)
            self._scheduler.instance_down(instance_id)
            self._count()

    def _count(self) -> None:
        now_ps = self._world.now_ps
        steps = sum(instance.steps_completed(now_ps) for instance in self.instances)
        self._sizes.count(now_ps / PS_PER_S, self._starting, len(self.up), steps)
