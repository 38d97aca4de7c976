"""How many instances there are (§4.4.3): the average freeness of the cluster is kept between two bounds."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

from llumnix.errors import ConfigError
from llumnix.load import FreenessRule, InstanceLoad, dispatch_freeness, migration_freeness, pooled


class Victim(StrEnum):
    """Which instance is terminated: the one with the fewest running requests (paper), or the one that came last
    (released code).
    """

    fewest_running = "fewest_running"
    last = "last"


@dataclass(kw_only=True, slots=True)
class ScalingPolicy:
    """When instances come and go; schema of the `scaling` part of conf/scheduler.

    Average freeness is kept between `low_blocks` and `low_blocks + width_blocks` (x and y of the paper, in blocks per
    request; §6.5 uses 10 and 60). It is looked at every `check_period_s`, for the first time after `first_check_s`.
    Below the lower bound as many instances are started at once as would lift it there (released code; the paper adds
    one); `at_most_per_check` limits that. Above the upper bound, were there one instance fewer, one is drained.
    A simulated instance serves `startup_s` after it was asked for, a real one when its engine is up. There are never
    fewer than `min_instances` or more than `max_instances`, those that start or drain included; cluster.instances is
    the number to begin with.
    """

    enabled: bool = False
    low_blocks: float = 10.0
    width_blocks: float = 50.0
    check_period_s: float = 10.0
    first_check_s: float = 10.0
    startup_s: float = 5.0
    min_instances: int = 1
    max_instances: int = 16
    at_most_per_check: int | None = None
    victim: Victim = Victim.fewest_running

    def __post_init__(self) -> None:
        if not math.isfinite(self.low_blocks):
            raise ConfigError(f"scheduler.scaling.low_blocks must be a number, got {self.low_blocks}.")
        for name in ("width_blocks", "startup_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"scheduler.scaling.{name} must not be negative, got {getattr(self, name)}.")
        for name in ("check_period_s", "first_check_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"scheduler.scaling.{name} must be positive, got {getattr(self, name)}.")
        if not 1 <= self.min_instances <= self.max_instances:
            raise ConfigError(
                "scheduler.scaling.min_instances must be at least 1 and at most max_instances, got "
                f"{self.min_instances} and {self.max_instances}."
            )
        if self.at_most_per_check is not None and self.at_most_per_check < 1:
            raise ConfigError(
                f"scheduler.scaling.at_most_per_check must be at least 1 (or null), got {self.at_most_per_check}."
            )

    def most(self, initial: int) -> int:
        """Return the most instances that there can be at a time, of `initial` to begin with."""
        return self.max_instances if self.enabled else initial

    def check_initial(self, instances: int) -> None:
        """Refuse a number of instances to begin with that lies outside the bounds (ConfigError)."""
        if self.enabled and not self.min_instances <= instances <= self.max_instances:
            raise ConfigError(
                f"cluster.instances={instances} must lie between scheduler.scaling.min_instances="
                f"{self.min_instances} and max_instances={self.max_instances}: it is the number to begin with."
            )


@dataclass(frozen=True, slots=True)
class ScaleUp:
    """Start `instances` more; `freeness` is what the average was."""

    instances: int
    freeness: float


@dataclass(frozen=True, slots=True)
class CancelDrain:
    """Keep an instance that was to be terminated: it serves again at once, which no new one could."""

    instance_id: int
    freeness: float


@dataclass(frozen=True, slots=True)
class ScaleDown:
    """Drain one instance and terminate it; `freeness` is what the average would be without it."""

    instance_id: int
    freeness: float


Decision = ScaleUp | CancelDrain | ScaleDown


def decide(
    loads: Collection[InstanceLoad], starting: int, policy: ScalingPolicy, rule: FreenessRule
) -> Decision | None:
    """Say what to do about the number of instances, given the load of each one that serves; None: nothing.

    Average freeness is that of all requests on all instances' memory as if they were one, for the normal class.
    `starting` instances count as empty ones. One instance drains at a time; until it is gone its memory counts, and
    nothing else is terminated, nor while any starts. The result does not depend on the order of `loads`.
    """
    here = pooled(loads, rule)
    empty_blocks = min(load.total_blocks - load.watermark_blocks for load in loads)
    draining = [load.instance_id for load in loads if load.draining]

    freeness = dispatch_freeness(_with(here, starting * empty_blocks), rule)
    if freeness < policy.low_blocks:
        if draining:
            return CancelDrain(min(draining), freeness)
        room = policy.max_instances - len(loads) - starting
        most = room if policy.at_most_per_check is None else min(room, policy.at_most_per_check)
        more = 0
        while more < most:
            more += 1
            if dispatch_freeness(_with(here, (starting + more) * empty_blocks), rule) >= policy.low_blocks:
                break
        return ScaleUp(more, freeness) if more > 0 else None

    if draining or starting or len(loads) <= policy.min_instances:
        return None
    fewer = migration_freeness(_with(here, -empty_blocks), rule)
    if fewer > policy.low_blocks + policy.width_blocks:
        return ScaleDown(_victim(loads, policy.victim), fewer)
    return None


def _with(load: InstanceLoad, more_blocks: int) -> InstanceLoad:
    return replace(load, free_blocks=load.free_blocks + more_blocks)


def _victim(loads: Collection[InstanceLoad], rule: Victim) -> int:
    """Return the instance to terminate; of those with equally few running requests, the one that came last."""
    if rule is Victim.last:
        return max(load.instance_id for load in loads)
    return -min((load.running, -load.instance_id) for load in loads)[1]
