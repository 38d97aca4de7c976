"""Load reports: they reach the scheduler, wait for none, and find the next one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from llumnix.cluster.real import channel
from llumnix.cluster.real.calls import CallServer
from llumnix.cluster.real.messages import Address, InstanceLost
from llumnix.cluster.real.reports import Reports
from llumnix.load import InstanceLoad

LOAD = InstanceLoad(
    instance_id=1,
    running=0,
    waiting=0,
    preempted=0,
    high_priority=0,
    free_blocks=10,
    total_blocks=10,
    watermark_blocks=0,
    block_size_tokens=16,
    waiting_tokens=0,
    head_tokens=0,
    draining=False,
)


class Place:
    """Where the scheduler is, if it is anywhere."""

    def __init__(self) -> None:
        self.address: Address | None = None

    def find(self) -> Address:
        if self.address is None:
            raise InstanceLost("there is no scheduler")
        return self.address


def eventually(holds: Callable[[], bool | None]) -> bool:
    end_s = time.monotonic() + 10
    while time.monotonic() < end_s and not holds():
        time.sleep(0.005)
    return bool(holds())


def test_reports_arrive_in_order() -> None:
    place, got = Place(), []
    place.address = CallServer({"report": got.append}, "127.0.0.1").address
    reports = Reports(place.find)
    reports.send(LOAD)
    assert eventually(lambda: len(got) == 1)
    for waiting in range(1, 50):
        reports.send(replace(LOAD, waiting=waiting))
    assert eventually(lambda: len(got) == 50)
    assert [load.waiting for load in got] == list(range(50))


def test_a_scheduler_that_comes_late_gets_the_last_report() -> None:
    place, got = Place(), []
    reports = Reports(place.find, retry_s=0.01)
    for waiting in range(3):
        reports.send(replace(LOAD, waiting=waiting))
    assert got == []
    place.address = CallServer({"report": got.append}, "127.0.0.1").address
    assert eventually(lambda: bool(got))
    assert [load.waiting for load in got] == [2]


def test_after_a_restart_reports_go_to_the_new_scheduler() -> None:
    place, got = Place(), []
    listener, place.address = channel.listen("127.0.0.1")
    reports = Reports(place.find, retry_s=0.01)
    reports.send(LOAD)
    connection = listener.accept()[0]
    assert channel.let_in(connection, place.address)
    channel.message(connection)
    assert eventually(lambda: reports._link is not None)
    place.address = None
    connection.close()  # as if its process had ended
    listener.close()
    assert eventually(lambda: reports._link is None or reports.send(replace(LOAD, waiting=1)))
    place.address = CallServer({"report": got.append}, "127.0.0.1").address
    assert eventually(lambda: bool(got))
    reports.send(replace(LOAD, waiting=2))
    assert eventually(lambda: [load.waiting for load in got] == [1, 2])
