"""ray.address, and a Ray cluster of several nodes that somebody else has started: each is a raylet of this machine.

Three instances on two of the nodes, and nothing but the front end on the one that the driver is on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import ray
from fake_engine import FakeEngine
from local import assert_exact, wait_until
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster

import llumnix
from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.front_end import Stream
from llumnix.cluster.real.spec import Limits
from llumnix.cluster.real.world import RayCluster, running
from llumnix.engines.base import EngineRequest, Parcel, Ready
from llumnix.policies.migration import MigrationPolicy
from llumnix.policies.spec import Scheduler

pytestmark = pytest.mark.xdist_group("several_nodes")  # one cluster, and not one per worker
LIMITS = Limits(poll_s=0.1, start_s=60.0)
BLOCK_BYTES = 1 << 18
LIMIT_S = 60.0


class BulkyFake(FakeEngine):
    """Its blocks are as heavy as real ones."""

    carriers = ("shared_memory", "inline")

    def read_blocks(self, request_id: str, first_block: int, blocks: int, carrier: str) -> list[Parcel]:
        parcels = super().read_blocks(request_id, first_block, blocks, carrier)
        return [replace(p, content=(p.content, np.ones(p.blocks * BLOCK_BYTES, np.uint8))) for p in parcels]

    def write_blocks(self, request_id: str, first_block: int, parcels: Sequence[Parcel]) -> Ready:
        assert all(parcel.content[1].sum() == parcel.blocks * BLOCK_BYTES for parcel in parcels)
        return super().write_blocks(request_id, first_block, [replace(p, content=p.content[0]) for p in parcels])


def build(directory: Path, instance_id: int) -> FakeEngine:
    (directory / f"{instance_id}").write_text(llumnix.__file__)
    return BulkyFake(blocks=200, step_s=0.02)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        # What workers know without being told by the driver: the engines of tests, and Ray.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("RAY_health_check_period_ms", "300")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes.add_node(num_cpus=2)
        nodes.add_node(num_cpus=1, labels={"last": "yes"})
        yield nodes
        nodes.shutdown()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each instance notes the file that it has the package from."""
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def cluster(nodes: Cluster, packages: Path) -> Iterator[RayCluster]:
    options = ActorOptions(num_cpus=1)
    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers look for modules where the driver does, which on other machines would find nothing.
        root = str(Path(llumnix.__file__).parents[1])
        patch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", root)])
        patch.chdir(packages)
        with running(
            3, partial(build, packages), Scheduler(), limits=LIMITS, options=options, address=nodes.address
        ) as running_cluster:
            yield running_cluster


def submit(cluster: RayCluster, name: str, tokens: int = 100) -> Stream:
    prompt = tuple(i * 7 % 1000 for i in range(60))
    stream = cluster.front_end.submit(EngineRequest(name, prompt, {"max_tokens": tokens}))
    wait_until(lambda: len(stream.tokens) > 1, LIMIT_S)
    return stream


def stored_bytes() -> dict[str, int]:
    """Bytes that have been put into the object store of each node, by its id."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    stats = {n["NodeID"]: node_stats(n["NodeManagerAddress"], n["NodeManagerPort"], False) for n in alive}
    return {node: int(answer.store_stats.cumulative_created_bytes) for node, answer in stats.items()}


def test_instances_have_the_package_from_the_driver(cluster: RayCluster, packages: Path) -> None:
    for instance in cluster.instances:
        file = Path((packages / f"{instance.instance_id}").read_text())
        assert "runtime_resources" in file.parts


def test_a_request_visits_all_instances_and_only_nodes_that_are_apart_send_by_ray(cluster: RayCluster) -> None:
    """Blocks go from the source's node to the destination's, and not by the driver's, where the front end is."""
    stream = submit(cluster, "traveller", tokens=600)  # enough for ten moves on a slow machine
    driver = ray.get_runtime_context().get_node_id()
    carriers = {}
    for source, destination in permutations(range(3), 2):
        while stream.life.instance_last != source:
            move(cluster, stream, source)
        before = stored_bytes()
        carriers[source, destination] = move(cluster, stream, destination)
        after = stored_bytes()
        stored = {node: after[node] - before[node] for node in after}
        heavy = {node for node, count in stored.items() if count > 10 * BLOCK_BYTES}
        apart = carriers[source, destination] == "inline (network)"
        assert driver not in heavy
        assert len(heavy) == (2 if apart else 1)
    assert sorted(carriers.values()) == ["inline (network)"] * 4 + ["shared_memory (node)"] * 2
    assert all(carriers[a, b] == carriers[b, a] for a, b in carriers)
    assert_exact(stream, LIMIT_S)


def move(cluster: RayCluster, stream: Stream, destination: int) -> str:
    source = stream.life.instance_last
    assert source is not None
    outcome = cluster.instances[source].migrate_out(destination, MigrationPolicy())
    assert outcome.moved, outcome
    wait_until(lambda: stream.life.instance_last == destination)
    return outcome.carrier


def test_requests_of_a_node_that_dies_go_on_elsewhere_and_its_instance_starts_on_another(
    cluster: RayCluster, nodes: Cluster
) -> None:
    streams = [submit(cluster, f"scattered-{n}") for n in range(6)]
    (last,) = (node["NodeID"] for node in ray.nodes() if "last" in node["Labels"])
    (raylet,) = (node for node in nodes.worker_nodes if node.node_id == last)
    nodes.remove_node(raylet, allow_graceful=False)
    for stream in streams:
        assert_exact(stream, LIMIT_S)
    replays = [stream.life.replays for stream in streams]
    assert set(replays) == {0, 1}
    assert len(cluster.front_end._down) == 1
    nodes.add_node(num_cpus=1)
    wait_until(lambda: not cluster.front_end._down, LIMIT_S)
    assert_exact(submit(cluster, "afterwards", tokens=10), LIMIT_S)
