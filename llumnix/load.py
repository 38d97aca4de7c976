"""Load of an instance and its freeness: one number for dispatch, migration and scaling (§4.4, Algorithm 1).

Pure formulas. Freeness is in blocks per request: how many more KV blocks each request of the batch can fill; times
the block size it is the number of decode steps that the batch can still run.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from llumnix.errors import ConfigError
from llumnix.request import Priority


class QueueDemand(StrEnum):
    """Which waiting requests count into virtual usage.

    head_of_line: only the first one, the paper's rule. all_waiting: every one, the released code's rule; in dispatch
    each of them then also counts as a request of the batch.
    """

    head_of_line = "head_of_line"
    all_waiting = "all_waiting"


# Looking a member up on its class costs ten times as much as a name of the module, and these formulas are the hot path.
_HEAD_OF_LINE = QueueDemand.head_of_line
_HIGH = Priority.HIGH


@dataclass(slots=True)
class InstanceLoad:
    """One report of an instance. A waiting request is measured in tokens: its prompt plus what it had generated."""

    instance_id: int
    running: int
    waiting: int
    preempted: int
    high_priority: int
    free_blocks: int
    total_blocks: int
    watermark_blocks: int
    block_size_tokens: int
    waiting_tokens: int
    head_tokens: int
    draining: bool = False

    @property
    def head_blocks(self) -> int:
        """Blocks that the first waiting request needs to be admitted; 0 if none waits."""
        return -(-self.head_tokens // self.block_size_tokens)


@dataclass(kw_only=True, slots=True)
class FreenessRule:
    """How virtual usage is counted; schema of the `freeness` part of conf/scheduler.

    priorities=False is blind to the service class (Llumnix-base). An instance with a high-priority request keeps all
    but `headroom_target_tokens` of its memory as headroom for it, so that its batch stays small enough to decode at
    near-ideal speed (§6.4: 1,600 tokens for LLaMA-7B on an A10). defragment=False leaves the queue out of migration
    freeness, as the released code does with load control off: a request that waits for memory moves nobody.
    """

    queue_demand: QueueDemand = QueueDemand.all_waiting
    defragment: bool = True
    priorities: bool = True
    headroom_target_tokens: int = 1600

    def __post_init__(self) -> None:
        if self.headroom_target_tokens < 0:
            raise ConfigError(
                f"scheduler.freeness.headroom_target_tokens must not be negative, got {self.headroom_target_tokens}."
            )


def headroom_blocks(load: InstanceLoad, rule: FreenessRule) -> float:
    """Blocks that a high-priority request keeps free on its instance (GetHeadroom summed over its class)."""
    return max(0.0, load.total_blocks - rule.headroom_target_tokens / load.block_size_tokens)


def migration_batch(load: InstanceLoad, rule: FreenessRule) -> int:
    """Return B of migration freeness: the running requests, plus one if any waits and the rule counts the queue."""
    return load.running + (1 if load.waiting and rule.defragment else 0)


def migration_freeness(load: InstanceLoad, rule: FreenessRule) -> float:
    """Freeness that decides who gives requests away and who takes them: (available - queue demand - headroom) / B.

    A blocked head of line pulls freeness below zero and makes its instance a source, which is the de-fragmentation
    rule. A draining instance holds a fake request of infinite usage. +inf for an instance without requests.
    """
    if load.draining:
        return -math.inf
    requests = migration_batch(load, rule)
    if requests == 0:
        return math.inf
    free: float = load.free_blocks - load.watermark_blocks
    if rule.defragment:
        waiting_tokens = load.head_tokens if rule.queue_demand is _HEAD_OF_LINE else load.waiting_tokens
        free -= waiting_tokens / load.block_size_tokens
    if rule.priorities and load.high_priority:
        free -= headroom_blocks(load, rule)
    return free / requests


def dispatch_freeness(load: InstanceLoad, rule: FreenessRule, priority: Priority = Priority.NORMAL) -> float:
    """Freeness as seen by a new request of the given class; it goes where this is highest.

    With queue_demand=all_waiting every waiting request counts in B, too. Headroom: a normal request avoids instances
    that hold a high-priority one; a high-priority request meets the headroom where there is none yet, and so joins
    its own kind.
    """
    if load.draining:
        return -math.inf
    if rule.queue_demand is _HEAD_OF_LINE:
        waiting_tokens, requests = load.head_tokens, load.running + (1 if load.waiting else 0)
    else:
        waiting_tokens, requests = load.waiting_tokens, load.running + load.waiting
    if requests == 0:
        return math.inf
    free = load.free_blocks - load.watermark_blocks - waiting_tokens / load.block_size_tokens
    if rule.priorities and (load.high_priority > 0) is not (priority is _HIGH):
        free -= headroom_blocks(load, rule)
    return free / requests


def pooled(loads: Collection[InstanceLoad], rule: FreenessRule) -> InstanceLoad:
    """All requests on all memory, as if the instances were one: its freeness is the average freeness of §4.4.3.

    As the normal class sees it: what is headroom for high-priority requests is not free. A draining instance counts
    with the memory that it has. The id is that of no instance.
    """
    headroom = sum(math.ceil(headroom_blocks(x, rule)) for x in loads if rule.priorities and x.high_priority)
    return InstanceLoad(
        instance_id=-1,
        running=sum(x.running for x in loads),
        waiting=sum(x.waiting for x in loads),
        preempted=sum(x.preempted for x in loads),
        high_priority=0,
        free_blocks=sum(x.free_blocks for x in loads) - headroom,
        total_blocks=sum(x.total_blocks for x in loads),
        watermark_blocks=sum(x.watermark_blocks for x in loads),
        block_size_tokens=max(x.block_size_tokens for x in loads),
        waiting_tokens=sum(x.waiting_tokens for x in loads),
        head_tokens=sum(x.head_tokens for x in loads),
    )


def requests_here(load: InstanceLoad) -> int:
    """Requests that an instance has not finished, running or waiting: what a router that counts its own work knows."""
    return load.running + load.waiting


def kv_usage(load: InstanceLoad) -> float:
    """Share of the KV cache that is used or wanted by the queue; above 1 where more is wanted than there is."""
    used = load.total_blocks - load.free_blocks
    return (used + load.waiting_tokens / load.block_size_tokens) / load.total_blocks
