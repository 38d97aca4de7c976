"""Which instances exchange requests, and which request moves (§4.4.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from llumnix.errors import ConfigError
from llumnix.load import FreenessRule, InstanceLoad, migration_freeness
from llumnix.request import Priority

_NO_HEADROOM = FreenessRule(priorities=False)


class RequestChoice(StrEnum):
    """Which running request leaves a source: the paper's shortest first, or the released code's youngest first."""

    youngest = "youngest"
    shortest = "shortest"
    longest = "longest"


class HighPriorityMoves(StrEnum):
    """When a high-priority request may leave its instance; never before a normal one, but for the last two.

    to_drain: only to empty an instance that is to be terminated. to_relieve: also off an instance that is short of
    memory, which is one that would be a source without any headroom. last: whenever no normal one is left (the paper's
    "lower priority first", taken literally). beside_normal: as the released code, which looks for a normal request, and
    where it finds one takes the first in order of all (a slip); to empty an instance, the others as well.
    like_any: the class is ignored (Llumnix-base).
    """

    to_drain = "to_drain"
    to_relieve = "to_relieve"
    last = "last"
    beside_normal = "beside_normal"
    like_any = "like_any"


class MigrationMethod(StrEnum):
    """How a request's KV cache gets to the destination: copied in stages, or computed again there by a prefill."""

    copy = "copy"
    recompute = "recompute"


@dataclass(kw_only=True, slots=True)
class MigrationPolicy:
    """When and what to migrate; schema of the `migration` part of conf/scheduler.

    Every `period_s` instances with freeness below `out_threshold_blocks` become sources and those above
    `in_threshold_blocks` destinations (blocks per request; the released code uses one value for both).
    `preempted_is_source`: an instance with a preempted request in its queue is a source whatever its freeness, and
    never a destination (released code). `persistent_pairs`: a paired source keeps sending requests until the next
    round un-pairs it (paper); otherwise one request a round (released code).
    `high_priority`: when requests of that class may be moved.
    A migration copies in at most `max_stages` stages; a stage that finds at most `last_stage_max_blocks` blocks left
    is the last one. One stage is stop-and-copy. With method=recompute nothing is copied: the request queues at the
    destination with the tokens it has (what systems without live migration do).
    """

    enabled: bool = False
    method: MigrationMethod = MigrationMethod.copy
    period_s: float = 0.2
    out_threshold_blocks: float = 3.0
    in_threshold_blocks: float = 3.0
    request_choice: RequestChoice = RequestChoice.youngest
    high_priority: HighPriorityMoves = HighPriorityMoves.to_relieve
    preempted_is_source: bool = True
    persistent_pairs: bool = False
    max_stages: int = 2
    last_stage_max_blocks: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.period_s < math.inf:
            raise ConfigError(f"scheduler.migration.period_s must be positive, got {self.period_s}.")
        if self.max_stages < 1:
            raise ConfigError(f"scheduler.migration.max_stages must be at least 1, got {self.max_stages}.")
        if self.last_stage_max_blocks < 0:
            raise ConfigError(
                f"scheduler.migration.last_stage_max_blocks must not be negative, got {self.last_stage_max_blocks}."
            )
        if not self.out_threshold_blocks <= self.in_threshold_blocks:
            raise ConfigError(
                "scheduler.migration.out_threshold_blocks must not exceed in_threshold_blocks, got "
                f"{self.out_threshold_blocks} > {self.in_threshold_blocks}."
            )


@dataclass(frozen=True, slots=True)
class Pair:
    """One source and the destination that its request goes to."""

    source: int
    destination: int


def is_source(load: InstanceLoad, freeness: float, policy: MigrationPolicy) -> bool:
    """Tell whether an instance should give requests away. An instance with nothing running has nothing to give."""
    return freeness < policy.out_threshold_blocks or (policy.preempted_is_source and load.preempted > 0)


def is_destination(load: InstanceLoad, freeness: float, policy: MigrationPolicy) -> bool:
    """Tell whether an instance may be given requests. No source is: the upper threshold is not below the lower one."""
    return freeness > policy.in_threshold_blocks and not (policy.preempted_is_source and load.preempted > 0)


def pair(loads: Iterable[InstanceLoad], policy: MigrationPolicy, rule: FreenessRule) -> list[Pair]:
    """Match the i-th least free source with the i-th freest destination, until one side runs out.

    The result does not depend on the order of `loads`: equals are ordered by instance id.
    """
    sources: list[tuple[float, int]] = []
    destinations: list[tuple[float, int]] = []
    for load in loads:
        freeness = migration_freeness(load, rule)
        if is_destination(load, freeness, policy):
            destinations.append((-freeness, load.instance_id))
        elif is_source(load, freeness, policy):
            sources.append((freeness, load.instance_id))
    sources.sort()
    destinations.sort()
    return [Pair(source, destination) for (_, source), (_, destination) in zip(sources, destinations, strict=False)]


class Movable(Protocol):
    """What the choice of a request looks at."""

    @property
    def priority(self) -> Priority: ...
    @property
    def arrival_order(self) -> int: ...
    @property
    def context_tokens(self) -> int: ...


M = TypeVar("M", bound=Movable)


def high_may_leave(load: InstanceLoad, policy: MigrationPolicy) -> bool:
    """Tell whether an instance whose load is `load`, and that has no normal request to give, gives a high one."""
    match policy.high_priority:
        case HighPriorityMoves.to_drain | HighPriorityMoves.beside_normal:
            return load.draining
        case HighPriorityMoves.to_relieve:
            return is_source(load, migration_freeness(load, _NO_HEADROOM), policy)
        case _:
            return True


def choose_request(running: Sequence[M], policy: MigrationPolicy, load: InstanceLoad) -> M | None:
    """Pick the request that leaves the instance whose present load is `load`; None if none runs that may leave.

    `running` holds decoding requests that are not already moving.
    """
    candidates = running
    if policy.high_priority is not HighPriorityMoves.like_any:
        normal = [r for r in running if r.priority is Priority.NORMAL]
        beside = policy.high_priority is HighPriorityMoves.beside_normal
        candidates = running if (beside if normal else high_may_leave(load, policy)) else normal
    if not candidates:
        return None
    if policy.request_choice is RequestChoice.youngest:
        return max(candidates, key=lambda r: r.arrival_order)
    sign = 1 if policy.request_choice is RequestChoice.shortest else -1
    return min(candidates, key=lambda r: (sign * r.context_tokens, -r.arrival_order))
