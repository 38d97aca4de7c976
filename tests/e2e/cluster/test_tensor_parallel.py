"""Two instances of two tensor-parallel ranks each, as Ray actors: each rank moves its own shard of the KV."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.build import build_engine
from llumnix.cluster.real.front_end import Stream
from llumnix.cluster.real.spec import Limits
from llumnix.cluster.real.world import RayCluster, running
from llumnix.engines.base import Engine, EngineRequest
from llumnix.engines.vllm.models import tiny_llama
from llumnix.engines.vllm.options import VllmOptions
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.migration import MigrationPolicy
from llumnix.policies.spec import Scheduler

LIMIT_S = 200.0
TOKENS = 500
AT_FIRST = Scheduler(dispatch=DispatchRule.first)
SAMPLING: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 1.0, "seed": 3}]

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None and os.environ.get("CI") != "true",
        reason="vLLM is not installed; `make test` installs it where pip finds a CPU build of torch",
    ),
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("tensor_parallel"),  # one cluster, and not one per worker
]


def build(options: VllmOptions, environment: dict[str, str], instance_id: int) -> Engine:
    """An engine that lets blocks come by both carriers in turn."""
    engine: Any = build_engine(options, environment, instance_id)
    turns = cycle([("shared_memory",), ("inline",)])
    engine.carriers_from = lambda departure: next(turns)
    return engine  # type: ignore[no-any-return]


def torch_gpus() -> int:
    """GPUs of this machine."""
    import torch

    return int(torch.cuda.device_count())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    options = VllmOptions(
        model=str(tiny_llama(tmp_path_factory.mktemp("model"))),
        dtype="float32",
        block_size_tokens=32,
        kv_blocks=100,
        kv_bytes_per_token=2048,
        max_model_tokens=1024,
        max_num_seqs=8,
        tensor_parallel=2,
        arguments={"enforce_eager": True, "distributed_executor_backend": "mp"},
    )
    gpus = torch_gpus()
    if 0 < gpus < 4:
        pytest.skip("two instances of two ranks take four GPUs, or none")
    environment = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with running(
        2,
        partial(build, options, environment),
        AT_FIRST,
        limits=Limits(control_s=60.0),  # four ranks that spin, and other tests, on as few as two cores
        options=ActorOptions(num_cpus=0.5, num_gpus=2.0 if gpus else 0.0),
    ) as running_cluster:
        yield running_cluster


def submit(cluster: RayCluster, name: str) -> list[Stream]:
    """Two requests on the first instance, with some tokens each."""
    streams = []
    wait_for(lambda: cluster.traffic().get("instances") == 2)  # on a busy machine one may have been silent for too long
    for n, sampling in enumerate(SAMPLING):
        prompt = tuple(3 + (n * 131 + j * j * 7) % 997 for j in range(70 + 30 * n))
        options = {"max_tokens": TOKENS, "ignore_eos": True, **sampling}
        request = EngineRequest(f"{name}-{n}", prompt, options, arrival_s=float(n), arrival_order=n)
        streams.append(cluster.front_end.submit(request))
    wait_for(lambda: all(len(stream.tokens) > 4 for stream in streams))
    assert all(stream.life.instance_first == 0 for stream in streams)
    return streams


def wait_for(condition: Callable[[], bool]) -> None:
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
    return finished(submit(cluster, "undisturbed"))


def test_every_rank_moves_its_shard(cluster: RayCluster, undisturbed: list[list[int]]) -> None:
    cluster.begin_run(AT_FIRST, record_steps=True)
    streams = submit(cluster, "moved")
    outcomes = [cluster.instances[0].migrate_out(1, MigrationPolicy()) for _ in streams]
    assert [outcome.carrier for outcome in outcomes] == ["shared_memory (node)", "inline (node)"], outcomes
    assert finished(streams) == undisturbed
    steps = cluster.instances[1].steps()
    assert steps
    assert all(step.tokens == step.batch for step in steps), "a token was computed again"
    loads = cluster.front_end.loads
    wait_for(lambda: all(load.free_blocks == load.total_blocks for load in loads.values()))


def test_ranks_end_with_their_instance_and_its_requests_go_on(
    cluster: RayCluster, undisturbed: list[list[int]]
) -> None:
    streams = submit(cluster, "killed")
    victim = cluster.instances[0].pid()
    ranks = children(victim)
    assert len(ranks) >= 2
    os.kill(victim, signal.SIGKILL)
    assert finished(streams)[0] == undisturbed[0]
    assert finished(streams)[1] == undisturbed[1]
    assert [stream.life.replays for stream in streams] == [1, 1]
    wait_for(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks))


def children(process: int) -> list[int]:
    """Processes that this one has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == process:
            found.append(int(status.parent.name))
    return found
