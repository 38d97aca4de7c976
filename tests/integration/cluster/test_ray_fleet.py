"""Instances come and go as Ray actors, around fake engines: processes really start, end and are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from local import assert_exact, wait_until

from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.front_end import Stream
from llumnix.cluster.real.messages import LinkError
from llumnix.cluster.real.spec import Limits
from llumnix.cluster.real.world import ClusterError, RayCluster, running
from llumnix.engines.base import EngineRequest
from llumnix.policies.migration import MigrationPolicy
from llumnix.policies.scaling import ScalingPolicy
from llumnix.policies.spec import Scheduler

LIMITS = Limits(control_s=5.0, copy_s=5.0, poll_s=0.1, step_s=5.0, reservation_s=2.0, start_s=60.0)
SCHEDULER = Scheduler(
    migration=MigrationPolicy(enabled=True, period_s=0.1, out_threshold_blocks=4.0, in_threshold_blocks=4.0),
    scaling=ScalingPolicy(
        enabled=True,
        low_blocks=6,
        width_blocks=4,
        check_period_s=0.5,
        first_check_s=0.5,
        max_instances=3,
        at_most_per_check=1,
    ),
)


def build(instance_id: int) -> FakeEngine:
    """Return an engine; the second instance's does not come up at all, the third's process dies at its first start."""
    if instance_id == 1:
        raise RuntimeError(f"no device for instance {instance_id}")
    if instance_id == 2 and not (begun := Path(os.environ["BEGUN"])).exists():
        begun.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return FakeEngine(blocks=64, step_s=0.02)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEGUN", str(tmp_path / "begun"))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        with running(1, build, SCHEDULER, limits=LIMITS, options=ActorOptions(num_cpus=0.1)) as running_cluster:
            yield running_cluster


def submit(cluster: RayCluster, number: int) -> Stream:
    prompt = tuple((number * 31 + i * 7) % 1000 for i in range(12))
    request = EngineRequest(f"r{number}", prompt, {"max_tokens": 100}, arrival_order=number)
    return cluster.front_end.submit(request)


def happened(cluster: RayCluster, kind: str) -> list[int | None]:
    return [notice.instance_id for notice in list(cluster.front_end.notices) if notice.kind == kind]


def lives(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_instances_come_under_load_through_faults_and_go_after_it(cluster: RayCluster) -> None:
    assert cluster.fleet is not None
    cluster.fleet.begin(time.time())
    streams = [submit(cluster, n) for n in range(24)]
    wait_until(lambda: len(happened(cluster, "scale_up")) > 0, 30)
    os.kill(cluster.dispatcher.pid(), signal.SIGKILL)  # while an instance starts
    wait_until(lambda: cluster.front_end.is_up(2), 60)
    assert 1 in happened(cluster, "instance_down")
    [reason] = [n.detail for n in cluster.front_end.notices if (n.kind, n.instance_id) == ("instance_down", 1)]
    assert reason is not None
    assert "no device for instance 1" in reason
    assert Path(os.environ["BEGUN"]).exists()
    pid = cluster.instances[2].pid()
    for stream in streams:
        assert_exact(stream, 90)
    wait_until(lambda: len(cluster.front_end._instances) == 1, 60)
    assert "begun" in [notice.detail for notice in cluster.front_end.notices if notice.kind == "drain"]
    [left] = cluster.front_end._instances
    if left != 2:
        wait_until(lambda: not lives(pid), 10)
    wait_until(lambda: cluster.traffic().get("instances") == 1, 10)
    assert_exact(submit(cluster, 99), 60)
    assert len(happened(cluster, "instance_down")) == len(set(happened(cluster, "instance_down")))
    sizes = cluster.fleet.end()
    assert max(sizes["up"]) > 1
    assert sizes["steps"][-1] > 100


def test_an_instance_that_is_killed_while_it_drains_is_ended_for_good(cluster: RayCluster) -> None:
    assert cluster.fleet is not None
    with pytest.raises(ClusterError, match="by the global scheduler alone"):
        cluster.drain(0, 1.0)
    streams = [submit(cluster, n) for n in range(3)]
    wait_until(lambda: all(stream.tokens for stream in streams), 30)
    cluster.fleet.begin(time.time() + 1000)  # no check comes
    cluster.fleet.start()
    two = cluster.fleet.start()
    wait_until(lambda: cluster.front_end.is_up(two), 60)
    cluster.fleet.set_draining(0, True)
    wait_until(lambda: cluster.front_end.loads[0].draining, 10)
    with suppress(LinkError):
        os.kill(cluster.instances[0].pid(), signal.SIGKILL)
    for stream in streams:
        assert_exact(stream, 60)
    wait_until(lambda: 0 not in cluster.front_end._instances, 30)
    assert_exact(submit(cluster, 50), 30)
