"""Ray actors around real vLLM engines for CPUs: moved and replayed requests give the tokens of undisturbed ones.

And the command line from end to end: records, migrations, preemptions and priorities on three real instances.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from trap import Trap
from watched import Watched

from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.front_end import Stream
from llumnix.cluster.real.spec import Limits
from llumnix.cluster.real.world import RayCluster, running
from llumnix.engines.base import Engine, EngineRequest
from llumnix.engines.vllm.models import tiny_llama
from llumnix.engines.vllm.options import VllmOptions
from llumnix.policies.migration import MigrationPolicy
from llumnix.policies.spec import Scheduler
from llumnix.record import EVENTS, INSTANCES, REQUESTS

ROOT = Path(__file__).resolve().parents[3]
INSTANCES_UP = 2
LIMIT_S = 120.0
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"temperature": 0.0, "min_tokens": 30},
    {"temperature": 0.9, "seed": 7},
    {"temperature": 0.7, "seed": 8, "top_p": 0.9},
]
ONLY_DRAINING = MigrationPolicy(
    enabled=True, period_s=0.05, out_threshold_blocks=-1e9, in_threshold_blocks=-1e9, preempted_is_source=False
)

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None and os.environ.get("CI") != "true",
        reason="vLLM is not installed; `make test` installs it where pip finds a CPU build of torch",
    ),
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("real_cluster"),  # one cluster, and not one per worker
]


def test_quickstart_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runners.serve", "experiment=quickstart", "num_requests=80"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "outputs/quickstart/runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finished"] == 80
    assert summary["migrated_requests"] > 0
    assert f"{summary['migrated_requests']} requests migrated" in done.stdout
    for name, schema in {"requests": REQUESTS, "events": EVENTS, "instances": INSTANCES}.items():
        assert pq.read_schema(run / f"{name}.parquet").names == schema.names
    requests = pq.read_table(run / "requests.parquet").to_pydict()
    assert set(requests["priority"]) == {0, 1}
    for arrival, sent, dispatch, first, end in zip(
        *(requests[f"{name}_s"] for name in ("arrival", "sent", "dispatch", "first_token", "end")), strict=True
    ):
        assert arrival <= sent <= dispatch + 1e-3
        assert dispatch <= end
        assert first <= end
    kinds = pq.read_table(run / "events.parquet").column("kind").to_pylist()
    assert kinds.count("migrate_commit") == summary["migrations"]
    assert kinds.count("preempt") == summary["preemptions"]


def gpus() -> int:
    """GPUs of this machine: the same tests run on them where there are any."""
    import torch

    return int(torch.cuda.device_count())


def build(options: VllmOptions, environment: dict[str, str], trap: Trap, instance_id: int) -> Engine:
    """An engine that says where it is in a migration."""
    os.environ.update(environment)
    from llumnix.engines.vllm.engine import VllmEngine

    class WatchedVllm(Watched, VllmEngine):
        pass

    engine = WatchedVllm(options)
    engine.at = trap.watch(instance_id)
    return engine


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Trap:
    return Trap(tmp_path_factory.mktemp("trap"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, trap: Trap) -> Iterator[RayCluster]:
    options = VllmOptions(
        model=str(tiny_llama(tmp_path_factory.mktemp("model"))),
        dtype="float32",
        block_size_tokens=32,
        kv_blocks=200,
        kv_bytes_per_token=2048,
        max_model_tokens=1024,
        max_num_seqs=16,
        max_num_batched_tokens=1024,
        arguments={"enforce_eager": True},
    )
    environment = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    with running(
        INSTANCES_UP,
        partial(build, options, environment, trap),
        Scheduler(migration=ONLY_DRAINING),
        limits=Limits(control_s=20.0),
        options=ActorOptions(num_cpus=0.5, num_gpus=min(1.0, gpus() / INSTANCES_UP)),
    ) as running_cluster:
        yield running_cluster


def submit(cluster: RayCluster, name: str, count: int, tokens: int = 300) -> list[Stream]:
    """The first `count` of the kinds of sampling, each with a prompt of its own that is the same in every call."""
    streams = []
    for n, sampling in enumerate(SAMPLING[:count]):
        prompt = tuple(3 + (n * 131 + j * j * 7) % 997 for j in range(40 + n))
        options = {"max_tokens": tokens, "ignore_eos": True, **sampling}
        request = EngineRequest(f"{name}-{n}", prompt, options, arrival_s=float(n), arrival_order=n)
        streams.append(cluster.front_end.submit(request))
        wait_for(lambda: bool(streams[-1].tokens))
    return streams


def wait_for(condition: Any) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def finished(streams: list[Stream]) -> list[list[int]]:
    for stream in streams:
        assert stream.wait(LIMIT_S), stream.life
        assert (stream.life.error, stream.life.finish_reason) == (None, "length")
    return [stream.tokens for stream in streams]


@pytest.fixture(scope="module")
def undisturbed(cluster: RayCluster) -> list[list[int]]:
    tokens = finished(submit(cluster, "undisturbed", len(SAMPLING)))
    assert [len(one) for one in tokens] == [300] * len(SAMPLING)
    return tokens


def test_requests_moved_between_processes_give_the_same_tokens(
    cluster: RayCluster, undisturbed: list[list[int]]
) -> None:
    streams = submit(cluster, "moved", len(SAMPLING))
    outcomes = []
    while not all(stream.ended.is_set() for stream in streams):
        for source in range(INSTANCES_UP):
            outcomes.append(cluster.instances[source].migrate_out(1 - source, MigrationPolicy()))
    assert finished(streams) == undisturbed
    moved = [outcome for outcome in outcomes if outcome.moved]
    assert len(moved) >= len(SAMPLING)
    wait_for(lambda: sum(stream.life.migrations for stream in streams) == len(moved))
    assert {outcome.carrier for outcome in moved} == {"cuda_ipc (node)" if gpus() else "shared_memory (node)"}


def test_nothing_is_left_behind(cluster: RayCluster, undisturbed: list[list[int]]) -> None:
    def idle() -> bool:
        loads = cluster.front_end.loads.values()
        return all((load.running, load.waiting, load.free_blocks) == (0, 0, load.total_blocks) for load in loads)

    wait_for(idle)


@pytest.mark.parametrize(
    ("fault", "step", "lost"),
    [("scheduler", "commit", False), ("destination", "commit", True), ("source", "write", True)],
)
def test_processes_are_killed_in_a_migration_and_tokens_stay_the_same(
    cluster: RayCluster, trap: Trap, undisturbed: list[list[int]], fault: str, step: str, lost: bool
) -> None:
    """The global scheduler moves a request from whichever instance has it; the destination is caught in the step."""
    streams = submit(cluster, f"{fault}-killed", len(SAMPLING))
    source = streams[-1].life.instance_last
    assert source is not None
    at_source = [stream for stream in streams if stream.life.instance_last == source]
    trap.set(step)
    cluster.instances[source].set_draining(True)
    destination = trap.caught(LIMIT_S)
    assert destination == 1 - source
    victim = {"source": source, "destination": destination}.get(fault)
    pid = (cluster.dispatcher if victim is None else cluster.instances[victim]).pid()
    os.kill(pid, signal.SIGKILL)
    trap.open()
    if victim != source:
        cluster.instances[source].set_draining(False)
    assert finished(streams) == undisturbed
    moved = at_source[-1].life  # the youngest
    assert moved.replays == lost
    for stream in streams[:-1]:
        assert stream.life.replays == ((stream in at_source) == (fault == "source") and victim is not None)
    if fault == "scheduler":
        wait_for(lambda: cluster.traffic().get("instances", 0) == INSTANCES_UP)
    if fault == "destination":  # it comes back, and is needed
        wait_for(lambda: not cluster.front_end._down and cluster.traffic().get("instances", 0) == INSTANCES_UP)
        assert cluster.instances[victim].pid() != pid
        cluster.instances[source].set_draining(True)
        wait_for(lambda: cluster.front_end.loads[source].draining)
        assert finished(submit(cluster, "afterwards", 1)) == undisturbed[:1]
        cluster.instances[source].set_draining(False)
