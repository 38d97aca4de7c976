"""The fault table with real processes: Ray actors are killed, or stopped, at a named step of a migration.

The global scheduler itself has the request moved: it empties instance 0, which is draining. Whoever comes to the step
of the cell stops there, and then one of the three takes its signal. test_faults.py has many more faults and steps, in
threads.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from local import assert_exact, wait_until
from trap import Trap
from watched import WatchedFake

from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.front_end import Stream
from llumnix.cluster.real.messages import LinkError
from llumnix.cluster.real.spec import Limits
from llumnix.cluster.real.world import RayCluster, running
from llumnix.engines.base import EngineRequest
from llumnix.policies.migration import MigrationPolicy
from llumnix.policies.spec import Scheduler

pytestmark = pytest.mark.xdist_group("process_faults")  # one cluster, and not one per worker
LIMITS = Limits(control_s=3.0, copy_s=3.0, migration_s=20.0, poll_s=0.1, step_s=10.0, reservation_s=2.0, start_s=60.0)
ONLY_DRAINING = MigrationPolicy(
    enabled=True, period_s=0.05, out_threshold_blocks=-1e9, in_threshold_blocks=-1e9, preempted_is_source=False
)
SOURCE = 0
TOKENS = 80
LIMIT_S = 60.0

STEPS = ["reserve", "write", "freeze", "commit", "landed", "release"]
"""Where a process is held: the destination before it reserves, in a stage, in the last one before it goes on with the
request, and when it has, before its answer; the source before it freezes the request, and before it forgets it."""

ENDINGS = {
    # steps:               reserve write freeze commit landed release
    "source killed":       "L       L     L      .      .      .",
    "destination killed":  ".       .     L      L      L      L",
    "scheduler killed":    ".       .     .      .      .      .",
    "source stopped":      "-       L     -      -      -      -",
    "destination stopped": "-       -     -      L      -      -",
    "scheduler stopped":   "-       -     .      -      -      -",
}  # fmt: skip
"""What becomes of the request that moves: it goes on (.), or is lost with its instance and starts again (L).

A process that is stopped hangs: nobody sees that it is gone, and only time limits find it.
"""

CELLS = [
    (fault, step, ending)
    for fault, endings in ENDINGS.items()
    for step, ending in zip(STEPS, endings.split(), strict=True)
    if ending != "-"
]


def build(trap: Trap, instance_id: int) -> WatchedFake:
    engine = WatchedFake(blocks=200, step_s=0.01)
    engine.at = trap.watch(instance_id)
    return engine


@dataclass
class Room:
    """A cluster that all cells share."""

    cluster: RayCluster
    trap: Trap
    requests: int = 0

    def submit(self, tokens: int = TOKENS) -> Stream:
        number = self.requests
        self.requests += 1
        prompt = tuple((number * 31 + i * 7) % 1000 for i in range(30))
        request = EngineRequest(f"r{number}", prompt, {"max_tokens": tokens}, arrival_order=number)
        return self.cluster.front_end.submit(request)

    def fill(self) -> list[Stream]:
        """Two or more requests everywhere, the last of them at the source."""
        streams: list[Stream] = []
        while self._fewest(streams) < 2 or streams[-1].life.instance_last != SOURCE:
            streams.append(self.submit())
            wait_until(lambda: len(streams[-1].tokens) > 1, LIMIT_S)
        return streams

    def _fewest(self, streams: list[Stream]) -> int:
        places = [stream.life.instance_last for stream in streams]
        return min(places.count(instance.instance_id) for instance in self.cluster.instances)

    def pid(self, victim: int | None) -> int:
        """The process of an instance, or of the scheduler; 0 while there is none."""
        try:
            return self.cluster.dispatcher.pid() if victim is None else self.cluster.instances[victim].pid()
        except LinkError:
            return 0

    def served_by(self, instance_id: int) -> bool:
        """One more request; is it that instance that takes it?"""
        stream = self.submit(tokens=4)
        assert_exact(stream, LIMIT_S)
        return stream.life.instance_first == instance_id


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    trap = Trap(tmp_path_factory.mktemp("trap"))
    options = ActorOptions(num_cpus=0.1)
    scheduler = Scheduler(migration=ONLY_DRAINING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patch.setenv(
            "RAY_kill_worker_timeout_milliseconds", "500"
        )  # what a process has to end by itself; not if stopped
        with running(3, partial(build, trap), scheduler, limits=LIMITS, options=options) as cluster:
            yield Room(cluster, trap)


@pytest.mark.parametrize(("fault", "step", "ending"), CELLS, ids=str)
def test_cell(room: Room, fault: str, step: str, ending: str) -> None:
    front_end = room.cluster.front_end
    streams = room.fill()
    noticed = len(front_end.notices)
    room.trap.set(step)
    room.cluster.instances[SOURCE].set_draining(True)
    room.trap.caught(LIMIT_S)
    wait_until(lambda: any(n.kind == "migrate_start" for n in front_end.notices[noticed:]), LIMIT_S)
    (begun,) = (n for n in front_end.notices[noticed:] if n.kind == "migrate_start")
    (moved,) = (s for s in streams if s.life.request.request_id == begun.request_id)
    victim = {"source": SOURCE, "destination": int(str(begun.detail).split()[-1])}.get(fault.split()[0])
    there = [s for s in streams if s.life.instance_last == victim and s is not moved and not s.ended.is_set()]
    pid = room.pid(victim)

    os.kill(pid, signal.SIGKILL if "killed" in fault else signal.SIGSTOP)
    room.trap.open()
    if victim != SOURCE:
        room.cluster.instances[SOURCE].set_draining(False)

    for stream in streams:
        assert_exact(stream, LIMIT_S)
        assert stream.life.replays == (stream in there or (stream is moved and ending == "L"))
    assert moved.life.instance_last != victim
    wait_until(lambda: not front_end._down, LIMIT_S)
    wait_until(lambda: room.served_by(SOURCE if victim is None else victim), LIMIT_S)
    wait_until(lambda: room.pid(victim) not in (0, pid), LIMIT_S)
    wait_until(lambda: room.cluster.traffic().get("instances") == 3, LIMIT_S)
