"""What our cluster costs: output tokens per second of N instances without migrations, beside N bare vLLM engines.

Both sides run on this machine, are started once, outside the measured time, and take turns for `rounds` rounds. A bare
engine is a process with an EngineCore in a tight loop (bare.py); the cluster is the real one: Ray actors, front end,
global scheduler with reports on and migration off. Engine options and requests are the same, and each round's bare
engines get the requests as the cluster has split them. All requests are there at once, so that both sides are as busy
as they can be, with outputs of `output` tokens give or take a half: equal ones would end in the same step, and give
the side whose prompts come in one piece larger prefill steps for good. One unmeasured round comes before. A side's time
is from its first request in to its last token out.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from omegaconf import OmegaConf
from scipy import stats

import conf
from analysis import words
from benchmarks.bare import BareEngine, BareEngineError
from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.build import build_engine
from llumnix.cluster.real.spec import Limits
from llumnix.cluster.real.world import ClusterError, RayCluster, running
from llumnix.engines.base import EngineRequest
from llumnix.engines.vllm import models
from llumnix.engines.vllm.options import VllmOptions
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.spec import Scheduler

EXAMPLES = """examples:
  python -m benchmarks.overhead                              2 instances of a tiny model on this machine's CPUs
  python -m benchmarks.overhead instances=1 rounds=9         fewer engines than cores: the front end has one for itself
  python -m benchmarks.overhead model=llama_7b num_gpus=0.5 out=overhead.json
                                                             2 instances and 2 bare engines on one GPU of 80 GB
  python -m benchmarks.overhead model=llama_7b instances=2 num_gpus=1 kv_blocks=1100 max_num_seqs=32 requests=256
                                                             the same on two GPUs
"""
SEED = 1


@dataclass(kw_only=True, slots=True)
class Setting:
    """What can be typed, and what it is if it is not. `arguments` (of vLLM's EngineArgs) and `environment` are JSON."""

    model: str = "tiny"
    instances: int = 2
    num_gpus: float = 0.0
    num_cpus: float = 0.5
    requests: int = 64
    prompt: int = 64
    output: int = 256
    rounds: int = 5
    kv_blocks: int = 400
    block_size: int = 32
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 2048
    max_model_tokens: int = 2048
    arguments: str = '{"enforce_eager": true}'
    environment: str = '{"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}'
    limit_s: float = 300.0
    out: str = ""


GPU_DEFAULTS = {
    "num_gpus": 0.5,
    "num_cpus": 1.0,
    "requests": 128,
    "prompt": 128,
    "output": 128,
    "kv_blocks": 449,
    "block_size": 16,
    "environment": '{"VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_OFFLINE": "1"}',
}
"""Where model=llama_7b differs from the tiny model. Four engines fit on 80 GB."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side in one round. CPU seconds by kind of process."""

    tokens: int
    wall_s: float
    cpu_s: dict[str, float]
    messages: dict[str, int]

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of all engines together."""
        return self.tokens / self.wall_s


@contextlib.contextmanager
def bare_engines(setting: Setting, options: VllmOptions) -> Iterator[list[BareEngine]]:
    """Start them one after the other, each on the GPU where Ray would put it."""
    engines: list[BareEngine] = []
    with tempfile.TemporaryDirectory() as logs:
        try:
            for index in range(setting.instances):
                environment = json.loads(setting.environment)
                if setting.num_gpus:
                    first = int(index * setting.num_gpus)
                    gpus = range(first, first + math.ceil(setting.num_gpus))
                    environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
                started_s = time.monotonic()
                engines.append(BareEngine(options.engine_arguments(), environment, Path(logs) / f"{index}.log"))
                engines[-1].receive()
                say(f"bare engine {index} is up after {time.monotonic() - started_s:.0f} s")
            yield engines
        finally:
            for engine in engines:
                engine.stop()


def run_bare(engines: Sequence[BareEngine], requests: Sequence[EngineRequest], split: Sequence[int]) -> Side:
    """Serve the requests, the i-th by engine split[i]."""
    for index, engine in enumerate(engines):
        mine = [r for r, instance_id in zip(requests, split, strict=True) if instance_id == index]
        engine.send([(r.request_id, r.prompt, r.sampling["max_tokens"]) for r in mine])
    replies = [engine.receive() for engine in engines]
    return Side(
        tokens=sum(reply["tokens"] for reply in replies),
        wall_s=max(reply["ended_s"] for reply in replies) - min(reply["started_s"] for reply in replies),
        cpu_s={"instances": sum(reply["cpu_s"] for reply in replies)},
        messages={"steps": sum(reply["steps"] for reply in replies)},
    )


def run_cluster(
    cluster: RayCluster, requests: Sequence[EngineRequest], pids: dict[str, list[int]], limit_s: float
) -> tuple[Side, list[int]]:
    """Serve the requests, and say which instance served which; the program ends if one has not exactly its tokens."""
    cpu_s, counted = _cpu_s(pids), _messages(cluster)
    started_s = time.time()
    streams = [cluster.front_end.submit(request) for request in requests]
    for stream in streams:
        if not stream.wait(max(0.0, started_s + limit_s - time.time())):
            fail(f"The cluster did not finish within {limit_s:g} s: raise limit_s= or lower requests=.")
    lives = [stream.life for stream in streams]
    for stream, life in zip(streams, lives, strict=True):
        given = [token for chunk in stream for token in chunk.tokens]
        if len(given) != life.request.sampling["max_tokens"] or life.migrations or life.replays:
            fail(f"Request {life.request.request_id} was disturbed ({len(given)} tokens): {life.error or life}")
    side = Side(
        tokens=sum(len(life.delivery.tokens) for life in lives),
        wall_s=max(life.end_s or math.inf for life in lives) - started_s,
        cpu_s={kind: after - cpu_s[kind] for kind, after in _cpu_s(pids).items()},
        messages={name: after - counted[name] for name, after in _messages(cluster).items()}
        | {"dispatches": len(requests), "submits": len(requests)},
    )
    return side, [life.instance_first or 0 for life in lives]


def _messages(cluster: RayCluster) -> dict[str, int]:
    return {"reports": cluster.traffic().get("reports", 0), "polls": sum(cluster.front_end.polls.values())}


def _processes(cluster: RayCluster) -> dict[str, list[int]]:
    """Process ids by kind; Ray's are its daemons, which are children of this process."""
    known = {
        "front end": [os.getpid()],
        "scheduler": [cluster.dispatcher.pid()],
        "instances": [instance.pid() for instance in cluster.instances],
    }
    daemons = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            name, _, rest = stat.read_text().rpartition(")")
            if int(rest.split()[1]) == os.getpid() and ("raylet" in name or "gcs_server" in name):
                daemons.append(int(stat.parent.name))
    return {**known, "Ray": daemons}


def _cpu_s(pids: dict[str, list[int]]) -> dict[str, float]:
    """CPU seconds so far of each kind of process, all threads."""
    tick_s = 1 / os.sysconf("SC_CLK_TCK")

    def of(pid: int) -> float:
        values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(values[11]) + int(values[12])) * tick_s

    return {kind: sum(of(pid) for pid in members) for kind, members in pids.items()}


def measure(setting: Setting, options: VllmOptions) -> list[tuple[Side, Side]]:
    """Return (bare, cluster) for every round."""
    environment = json.loads(setting.environment)
    scheduler = Scheduler(dispatch=DispatchRule.round_robin)
    limits = Limits(control_s=30.0, start_s=setting.limit_s)
    actor = ActorOptions(num_cpus=setting.num_cpus, num_gpus=setting.num_gpus)
    random = np.random.default_rng(SEED)
    prompts = random.integers(3, 990, size=(setting.requests, setting.prompt)).tolist()
    outputs = random.integers(
        setting.output // 2, setting.output + setting.output // 2, setting.requests, endpoint=True
    )
    done = []
    with bare_engines(setting, options) as engines:
        started_s = time.monotonic()
        build = partial(build_engine, options, environment)
        with running(setting.instances, build, scheduler, limits=limits, options=actor) as cluster:
            say(f"the cluster is up after {time.monotonic() - started_s:.0f} s")
            pids = _processes(cluster)
            for number in range(setting.rounds + 1):
                requests = [
                    EngineRequest(
                        f"{number}-{index}",
                        tuple(prompt),
                        {"max_tokens": int(outputs[index]), "temperature": 0.0, "ignore_eos": True},
                        arrival_s=time.time(),
                        arrival_order=index,
                    )
                    for index, prompt in enumerate(prompts)
                ]
                ours, split = run_cluster(cluster, requests, pids, setting.limit_s)
                bare = run_bare(engines, requests, split)
                name = f"round {number}" if number else "warm-up"
                say(
                    f"{name}: bare {bare.tokens_per_s:,.0f}, cluster {ours.tokens_per_s:,.0f} tokens/s, "
                    f"ratio {ours.tokens_per_s / bare.tokens_per_s:.3f}"
                )
                if number:
                    done.append((bare, ours))
    return done


def report(setting: Setting, done: Sequence[tuple[Side, Side]]) -> dict[str, Any]:
    """Print what was measured, and return it."""
    bare, ours = [b for b, _ in done], [o for _, o in done]
    ratios = [o.tokens_per_s / b.tokens_per_s for b, o in done]
    ratio, low, high = _mean_ratio(ratios)
    print(
        f"\n{setting.instances} x {setting.model}, {setting.requests} requests of {setting.prompt} + {setting.output} "
        f"tokens, {setting.rounds} rounds; medians, ranges in brackets"
    )
    print(f"  bare engines, output tokens/s    {_spread([side.tokens_per_s for side in bare])}")
    print(f"  our cluster, output tokens/s     {_spread([side.tokens_per_s for side in ours])}")
    print(f"  cluster / bare                   {ratio:.3f}, 95 % interval [{low:.3f}, {high:.3f}]")
    print("CPU seconds per 1,000 output tokens")
    for name, sides in (("bare engines", bare), ("cluster", ours)):
        for kind in sides[0].cpu_s:
            print(f"  {name + ', ' + kind:32} {_spread([1000 * s.cpu_s[kind] / s.tokens for s in sides], 3)}")
    print("messages of the cluster")
    for kind in ours[0].messages:
        print(f"  {kind + '/s':32} {_spread([s.messages[kind] / s.wall_s for s in ours], 1)}")
    total = [sum(s.messages.values()) for s in ours]
    print(f"  {'all/s':32} {_spread([t / s.wall_s for t, s in zip(total, ours, strict=True)], 1)}")
    print(f"  {'all per output token':32} {_spread([t / s.tokens for t, s in zip(total, ours, strict=True)], 4)}")
    rounds = [{"bare": asdict(b), "cluster": asdict(o), "ratio": r} for (b, o), r in zip(done, ratios, strict=True)]
    return {"ratio": ratio, "ratio_interval_95": [low, high], "rounds": rounds}


def _mean_ratio(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean and its 95 % interval (Student's t on the logarithms); unbounded for one round."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), 0.0, math.inf
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def _spread(values: Sequence[float], digits: int = 0) -> str:
    middle, low, high = (f"{v:,.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} [{low}, {high}]"


def as_typed(asked: dict[str, str], types: dict[str, Any]) -> dict[str, Any]:
    """Turn what was typed into the types of a setting; the program ends if a number is none."""
    values: dict[str, Any] = {}
    for key, text in asked.items():
        try:
            values[key] = {"int": int, "float": float, "str": str}[str(types[key])](text)
        except ValueError:
            words.stop(f"{key} must be a number, got '{text}'.")
    return values


def read_setting(argv: Sequence[str] | None = None) -> Setting:
    """Turn the words of the command line into a setting."""
    known = {field.name: field.type for field in fields(Setting)}
    asked = words.parse(argv, "benchmarks.overhead", list(known), __doc__ or "", EXAMPLES)
    gpu = asked.get("model") == "llama_7b"
    setting = Setting(**(dict(GPU_DEFAULTS) if gpu else {}) | as_typed(asked, known))
    if gpu and "arguments" not in asked:
        setting.arguments = json.dumps(gpu_arguments())
    for key in ("instances", "requests", "prompt", "output", "rounds", "limit_s"):
        if getattr(setting, key) <= 0:
            words.stop(f"{key} must be positive, got {getattr(setting, key)}.")
    for key in ("arguments", "environment"):
        try:
            if not isinstance(json.loads(getattr(setting, key)), dict):
                raise ValueError("it is no object")
        except ValueError as error:
            words.stop(f"{key} must be a JSON object, got '{getattr(setting, key)}' ({error}).")
    if setting.model not in ("tiny", "llama_7b"):
        words.stop(f"model={setting.model} is not known; choose model=tiny or model=llama_7b.")
    return setting


def gpu_arguments() -> dict[str, Any]:
    """Those of engine=vllm_gpu; memory is set by kv_blocks."""
    engine: Any = OmegaConf.load(Path(conf.__file__).parent / "engine" / "vllm_gpu.yaml")
    return {"gpu_memory_utilization": 0.2, **OmegaConf.to_container(engine.arguments)}


def engine_options(setting: Setting) -> VllmOptions:
    """Say how every engine, ours or bare, is started; writes the model if it is not there yet."""
    tiny = setting.model == "tiny"
    return VllmOptions(
        model=str(models.tiny_llama() if tiny else models.llama_config(models.LLAMA_7B)),
        dtype="float32" if tiny else "float16",
        load_format="auto" if tiny else "dummy",
        block_size_tokens=setting.block_size,
        kv_blocks=setting.kv_blocks,
        kv_bytes_per_token=2048 if tiny else 524288,
        max_model_tokens=setting.max_model_tokens,
        max_num_seqs=setting.max_num_seqs,
        max_num_batched_tokens=setting.max_num_batched_tokens,
        high_priority_first=False,
        # Both sides' engines are on the same GPUs at once.
        arguments=({"gpu_memory_utilization": 0.45 * min(setting.num_gpus, 1.0)} if setting.num_gpus else {})
        | json.loads(setting.arguments),
    )


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """End the program: exit code 1."""
    say(message)
    raise SystemExit(1)


def main() -> None:
    """Measure what is asked for and print it."""
    setting = read_setting()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    say(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    try:
        done = measure(setting, engine_options(setting))
    except (ClusterError, BareEngineError) as error:
        fail(str(error))
    measured = report(setting, done)
    if setting.out:
        Path(setting.out).write_text(json.dumps({"setting": asdict(setting), **measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
