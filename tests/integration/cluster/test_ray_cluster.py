"""The same cluster as Ray actors, around fake engines: migration, draining, and life without the global scheduler.

test_process_faults.py kills the other processes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from local import assert_exact, wait_until

from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.front_end import Stream
from llumnix.cluster.real.spec import Limits
from llumnix.cluster.real.world import ClusterError, RayCluster, running
from llumnix.engines.base import EngineRequest
from llumnix.policies.migration import MigrationPolicy
from llumnix.policies.spec import Scheduler

pytestmark = pytest.mark.xdist_group("ray_cluster")  # one cluster, and not one per worker
LIMITS = Limits(control_s=5.0, copy_s=5.0, poll_s=0.1, step_s=5.0, reservation_s=2.0, start_s=60.0)


def build(blocks: int, instance_id: int) -> FakeEngine:
    del instance_id
    return FakeEngine(blocks=blocks, step_s=0.02, steps_ahead=True)


def fails(instance_id: int) -> FakeEngine:
    raise ModuleNotFoundError(f"No module named 'engine_{instance_id}'")


class Stubborn(FakeEngine):
    """An engine that never ends."""

    def shutdown(self) -> None:
        time.sleep(600)


def build_stubborn(instance_id: int) -> Stubborn:
    del instance_id
    return Stubborn()


@pytest.fixture(scope="module", autouse=True)
def _fakes_are_found_by_actors() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


def test_an_engine_that_does_not_start_says_why() -> None:
    with (
        pytest.raises(ClusterError, match=r"No module named 'engine_0', where .* install .* on every node"),
        running(1, fails, Scheduler(), limits=LIMITS, options=ActorOptions(num_cpus=0.1)),
    ):
        pass


def test_an_instance_that_does_not_end_is_killed_with_its_cluster() -> None:
    limits = replace(LIMITS, control_s=1.0)
    with running(1, build_stubborn, Scheduler(), limits=limits, options=ActorOptions(num_cpus=0.1)) as stubborn:
        process = Path(f"/proc/{stubborn.instances[0].pid()}")
        assert process.exists()
    wait_until(lambda: not process.exists(), 10)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    policy = MigrationPolicy(enabled=True, period_s=0.1, out_threshold_blocks=4.0, in_threshold_blocks=4.0)
    options = ActorOptions(num_cpus=0.1)
    with running(3, partial(build, 60), Scheduler(migration=policy), limits=LIMITS, options=options) as running_cluster:
        yield running_cluster


def submit(cluster: RayCluster, name: str, count: int, tokens: int = 60) -> list[Stream]:
    streams = []
    for n in range(count):
        prompt = tuple((n * 31 + i * 7) % 1000 for i in range(12))
        request = EngineRequest(f"{name}-{n}", prompt, {"max_tokens": tokens}, arrival_order=n)
        streams.append(cluster.front_end.submit(request))
        time.sleep(0.01)
    return streams


def all_up(cluster: RayCluster) -> None:
    wait_until(lambda: not cluster.front_end._down, 60)


def test_requests_are_migrated_and_end_with_their_tokens(cluster: RayCluster) -> None:
    streams = submit(cluster, "moved", 15)
    for stream in streams:
        assert_exact(stream, 60)
    kinds = [notice.kind for notice in cluster.front_end.notices]
    assert sum(stream.life.migrations for stream in streams) > 0
    assert kinds.count("migrate_commit") == sum(stream.life.migrations for stream in streams)


def test_a_drained_instance_is_empty_and_takes_nothing_until_it_is_resumed(cluster: RayCluster) -> None:
    streams = submit(cluster, "drained", 9, tokens=150)
    wait_until(lambda: all(stream.tokens for stream in streams), 60)
    assert cluster.drain(0, 60)
    assert not all(stream.ended.is_set() for stream in streams), "nothing was left to give away"
    late = submit(cluster, "late", 3)
    for stream in [*streams, *late]:
        assert_exact(stream, 60)
    assert all(stream.life.instance_first != 0 for stream in late)
    cluster.resume(0)
    wait_until(lambda: not cluster.front_end.loads[0].draining, 10)
    assert_exact(submit(cluster, "resumed", 1)[0], 60)


def test_without_the_global_scheduler_dispatch_goes_on_until_it_is_back(cluster: RayCluster) -> None:
    all_up(cluster)
    os.kill(cluster.dispatcher.pid(), signal.SIGKILL)
    for stream in submit(cluster, "bypass", 9, tokens=20):
        assert_exact(stream, 60)
    wait_until(lambda: cluster.traffic().get("reports", 0) > 3, 60)
    time.sleep(1.5)  # the front end asks again after a while
    bypassed = cluster.front_end.bypassed
    for stream in submit(cluster, "rejoined", 3, tokens=10):
        assert_exact(stream, 60)
    assert cluster.front_end.bypassed == bypassed


def test_cancelling_frees_the_engine(cluster: RayCluster) -> None:
    all_up(cluster)
    (stream,) = submit(cluster, "cancelled", 1, tokens=200)
    wait_until(lambda: bool(stream.tokens), 30)
    stream.cancel()
    assert stream.wait(5)
    wait_until(lambda: all(load.running == 0 for load in cluster.front_end.loads.values()), 10)


def test_a_second_run_has_a_scheduler_of_its_own_that_hears_of_all_instances(cluster: RayCluster) -> None:
    cluster.begin_run(Scheduler())
    assert cluster.traffic()["instances"] == len(cluster.instances)
    for stream in submit(cluster, "second", 3, tokens=10):
        assert_exact(stream, 60)
