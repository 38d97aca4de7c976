"""Freeness against numbers worked out by hand; blocks of 16 tokens, 100 of them, 2 below the watermark."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from llumnix.errors import ConfigError
from llumnix.load import (
    FreenessRule,
    InstanceLoad,
    QueueDemand,
    dispatch_freeness,
    headroom_blocks,
    migration_freeness,
    pooled,
)
from llumnix.request import Priority

IDLE = InstanceLoad(
    instance_id=0,
    running=0,
    waiting=0,
    preempted=0,
    high_priority=0,
    free_blocks=100,
    total_blocks=100,
    watermark_blocks=2,
    block_size_tokens=16,
    waiting_tokens=0,
    head_tokens=0,
)
BUSY = replace(IDLE, running=4, free_blocks=62)
# three wait for 320 tokens = 20 blocks in all, the first of them for 160 = 10 blocks
QUEUED = replace(BUSY, waiting=3, waiting_tokens=320, head_tokens=160)
RELEASED = FreenessRule(queue_demand=QueueDemand.all_waiting, headroom_target_tokens=1000)
PAPER = FreenessRule(queue_demand=QueueDemand.head_of_line, headroom_target_tokens=1000)
BLIND = FreenessRule(priorities=False, headroom_target_tokens=1000)
BOTH = pytest.mark.parametrize("rule", [RELEASED, PAPER], ids=["released", "paper"])


@BOTH
def test_without_a_queue_it_is_what_is_free_above_the_watermark_per_running_request(rule: FreenessRule) -> None:
    assert migration_freeness(BUSY, rule) == (62 - 2) / 4
    assert dispatch_freeness(BUSY, rule) == (62 - 2) / 4


def test_migration_counts_the_queue_as_one_more_request_whatever_its_length() -> None:
    assert migration_freeness(QUEUED, RELEASED) == (62 - 2 - 20) / (4 + 1)
    assert migration_freeness(QUEUED, PAPER) == (62 - 2 - 10) / (4 + 1)


def test_dispatch_counts_every_waiting_request_in_the_released_reading_only() -> None:
    assert dispatch_freeness(QUEUED, RELEASED) == (62 - 2 - 20) / (4 + 3)
    assert dispatch_freeness(QUEUED, PAPER) == (62 - 2 - 10) / (4 + 1)


def test_demand_of_the_queue_is_not_rounded_up_to_whole_blocks() -> None:
    load = replace(BUSY, waiting=1, waiting_tokens=8, head_tokens=8)
    assert migration_freeness(load, RELEASED) == (60 - 0.5) / 5


@BOTH
def test_a_blocked_head_of_line_makes_a_fragmented_instance_a_source(rule: FreenessRule) -> None:
    load = replace(BUSY, free_blocks=30, waiting=1, waiting_tokens=640, head_tokens=640)  # 28 usable, 40 wanted
    assert migration_freeness(load, rule) == (28 - 40) / 5 < 0
    assert migration_freeness(replace(load, waiting=0, waiting_tokens=0, head_tokens=0), rule) == 7


@BOTH
def test_without_defragmentation_the_queue_makes_no_source(rule: FreenessRule) -> None:
    blind = replace(rule, defragment=False)
    assert migration_freeness(QUEUED, blind) == (62 - 2) / 4  # neither its demand nor one request more
    assert migration_freeness(replace(QUEUED, high_priority=1), blind) == (62 - 2 - 37.5) / 4
    assert migration_freeness(replace(QUEUED, running=0), blind) == math.inf
    assert migration_freeness(replace(QUEUED, draining=True), blind) == -math.inf
    assert dispatch_freeness(QUEUED, blind) == dispatch_freeness(QUEUED, rule)


@BOTH
def test_an_instance_without_requests_is_freest_even_without_memory(rule: FreenessRule) -> None:
    assert migration_freeness(replace(IDLE, free_blocks=0), rule) == math.inf
    assert dispatch_freeness(replace(IDLE, free_blocks=0), rule) == math.inf


@BOTH
def test_an_instance_on_which_requests_only_wait_is_not_idle(rule: FreenessRule) -> None:
    load = replace(IDLE, free_blocks=12, waiting=2, waiting_tokens=640, head_tokens=320)
    wanted, requests = (40, 2) if rule is RELEASED else (20, 1)
    assert migration_freeness(load, rule) == 10 - wanted
    assert dispatch_freeness(load, rule) == (10 - wanted) / requests


@BOTH
def test_draining_is_a_request_of_infinite_usage(rule: FreenessRule) -> None:
    for load in (IDLE, BUSY, QUEUED):
        assert migration_freeness(replace(load, draining=True), rule) == -math.inf
        for priority in Priority:
            assert dispatch_freeness(replace(load, draining=True), rule, priority) == -math.inf


def test_headroom_is_all_but_the_target_load() -> None:
    assert headroom_blocks(BUSY, RELEASED) == 100 - 1000 / 16
    assert headroom_blocks(BUSY, replace(RELEASED, headroom_target_tokens=1601)) == 0  # never negative
    assert headroom_blocks(BUSY, replace(RELEASED, headroom_target_tokens=0)) == 100


@pytest.mark.parametrize("high", [1, 3])
def test_headroom_is_kept_once_however_many_high_priority_requests_there_are(high: int) -> None:
    load = replace(BUSY, high_priority=high)
    assert migration_freeness(load, RELEASED) == (60 - 37.5) / 4
    assert dispatch_freeness(load, RELEASED, Priority.NORMAL) == (60 - 37.5) / 4


def test_a_high_priority_request_meets_the_headroom_where_its_kind_is_not_yet() -> None:
    assert dispatch_freeness(BUSY, RELEASED, Priority.HIGH) == (60 - 37.5) / 4
    assert dispatch_freeness(replace(BUSY, high_priority=1), RELEASED, Priority.HIGH) == 60 / 4


def test_without_priorities_nothing_depends_on_the_class() -> None:
    load = replace(BUSY, high_priority=1)
    assert migration_freeness(load, BLIND) == 15
    assert {dispatch_freeness(x, BLIND, p) for x in (load, BUSY) for p in Priority} == {15}


def test_a_negative_headroom_target_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"headroom_target_tokens must not be negative, got -1"):
        FreenessRule(headroom_target_tokens=-1)


def test_the_pooled_load_is_that_of_one_instance_with_all_requests_and_all_memory() -> None:
    both = pooled([BUSY, QUEUED], PAPER)
    assert dispatch_freeness(both, RELEASED) == (2 * 60 - 20) / (4 + 4 + 3)
    assert migration_freeness(both, RELEASED) == (2 * 60 - 20) / (4 + 4 + 1)
    assert migration_freeness(both, PAPER) == (2 * 60 - 10) / (4 + 4 + 1)
    assert dispatch_freeness(pooled([IDLE, IDLE], PAPER), PAPER) == math.inf


def test_headroom_is_not_free_for_the_average_and_a_draining_instance_still_counts() -> None:
    high = replace(BUSY, high_priority=2)
    assert dispatch_freeness(pooled([BUSY, high], RELEASED), RELEASED) == (60 + 60 - 38) / 8  # 37.5 rounded up
    assert dispatch_freeness(pooled([BUSY, high], BLIND), BLIND) == 120 / 8
    assert dispatch_freeness(pooled([BUSY, replace(BUSY, draining=True)], RELEASED), RELEASED) == 120 / 8
