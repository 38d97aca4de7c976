"""Parcels that only name where blocks are, as by CUDA IPC and shared memory: they must be there when they are read.

The source of these tests wipes a block as soon as it is freed, so that reading one too late changes the tokens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fake_engine import FakeEngine, FakeRequest
from local import LIMITS, LocalCluster, assert_exact, no_leak, wait_until

from llumnix.cluster.real.front_end import Stream
from llumnix.cluster.real.messages import InstanceLost, Landing
from llumnix.engines.base import Parcel, Ready
from llumnix.migration import AbortReason

BY_NAME = pytest.mark.parametrize("carrier", ["cuda_ipc", "shared_memory"])


class NamingFake(FakeEngine):
    """An engine whose parcels name blocks of its memory; the destination reads them itself."""

    def __init__(self, carrier: str) -> None:
        super().__init__()
        self.carriers = (carrier,)
        self.thawed: list[str] = []

    def read_blocks(self, request_id: str, first_block: int, blocks: int, carrier: str) -> list[Parcel]:
        (item,) = self._find(request_id)
        written = -(-item.computed // self.block_size_tokens)
        table = item.table[first_block : min(first_block + blocks, written)]
        return [Parcel(carrier, len(table), (self, table))] if table else []

    def write_blocks(self, request_id: str, first_block: int, parcels: Sequence[Parcel]) -> Ready:
        content = [[list(parcel.content[0].memory[block]) for block in parcel.content[1]] for parcel in parcels]
        read = [Parcel(parcel.carrier, parcel.blocks, rows) for parcel, rows in zip(parcels, content, strict=True)]
        return super().write_blocks(request_id, first_block, read)

    def thaw(self, request_id: str) -> bool:
        self.thawed.append(request_id)
        return super().thaw(request_id)

    def _remove(self, item: FakeRequest, why: AbortReason) -> None:
        for block in item.table:
            self.memory[block] = [-1]
        super()._remove(item, why)


def started(cluster: LocalCluster) -> tuple[Stream, int]:
    stream = cluster.submit(0, tokens=120, prompt=30)
    wait_until(lambda: len(stream.tokens) >= 5)
    assert stream.life.instance_last is not None
    return stream, stream.life.instance_last


def late(cluster: LocalCluster, destination: int, delay_s: float, answers: list[bool]) -> None:
    """Let the last stage arrive `delay_s` after the source has been told that the destination cannot be reached."""
    llumlet = cluster.links[destination].llumlet
    land = llumlet.land

    def arrives_later(landing: Landing) -> bool:
        threading.Timer(delay_s, lambda: answers.append(land(landing))).start()
        raise InstanceLost("it cannot be reached just now")

    llumlet.land = arrives_later  # type: ignore[method-assign]


@BY_NAME
def test_a_request_moves_by_name(carrier: str) -> None:
    with LocalCluster(2, build=lambda _: NamingFake(carrier)) as cluster:
        stream, source = started(cluster)
        outcome = cluster.links[source].move("r0", 1 - source)
        assert (outcome.moved, outcome.carrier) == (True, f"{carrier} (process)")
        assert_exact(stream)
        no_leak(cluster)


@BY_NAME
def test_a_last_stage_that_arrives_after_the_source_heard_of_an_error_still_finds_the_blocks(carrier: str) -> None:
    limits = replace(LIMITS, control_s=0.4)
    answers: list[bool] = []
    with LocalCluster(2, build=lambda _: NamingFake(carrier), limits=limits) as cluster:
        stream, source = started(cluster)
        late(cluster, 1 - source, 0.2, answers)
        began_s = time.monotonic()
        assert not cluster.links[source].move("r0", 1 - source).moved
        assert time.monotonic() - began_s > 2 * limits.control_s
        assert answers == [True]
        assert cluster.links[source].engine.thawed == ["r0"]  # what its parcels hold is given back, no sooner
        assert_exact(stream)
        assert stream.life.replays == 0
        no_leak(cluster)


@BY_NAME
def test_a_last_stage_that_arrives_too_late_is_refused_and_the_request_started_again(carrier: str) -> None:
    limits = replace(LIMITS, control_s=0.2, reservation_s=5.0)
    answers: list[bool] = []
    with LocalCluster(2, build=lambda _: NamingFake(carrier), limits=limits) as cluster:
        stream, source = started(cluster)
        late(cluster, 1 - source, 0.3, answers)
        assert not cluster.links[source].move("r0", 1 - source).moved
        wait_until(lambda: bool(answers))
        assert answers == [False]
        assert_exact(stream)
        assert stream.life.replays == 1
        no_leak(cluster)


def test_bytes_in_the_parcel_keep_nobody_waiting() -> None:
    limits = replace(LIMITS, control_s=2.0)
    answers: list[bool] = []
    with LocalCluster(2, limits=limits) as cluster:
        stream, source = started(cluster)
        late(cluster, 1 - source, 0.05, answers)
        began_s = time.monotonic()
        assert not cluster.links[source].move("r0", 1 - source).moved
        assert time.monotonic() - began_s < limits.control_s
        assert_exact(stream)
        no_leak(cluster)
