"""One run of the stub cluster: starts the scheduler's process, serves, and turns what happened into records."""

from __future__ import annotations

import gc

import numpy as np
import numpy.typing as npt

from llumnix.cluster.result import Columns, RunResult
from llumnix.cluster.spec import ClusterSpec
from llumnix.cluster.stub.cluster import CentralizedCluster, PerInstanceCluster, Progress, StubCluster
from llumnix.cluster.stub.process import SchedulerProcess
from llumnix.cluster.stub.programs import CentralScheduler, GlobalScheduling
from llumnix.engines.sim.cost import PS_PER_S, CostModel
from llumnix.engines.stub.spec import Scheduling, StubEngine
from llumnix.errors import ConfigError
from llumnix.policies.spec import Scheduler
from llumnix.record import INSTANCES
from llumnix.request import Workload


def serve_stub(
    workload: Workload,
    cluster: ClusterSpec,
    engine: StubEngine,
    cost: CostModel,
    scheduler: Scheduler,
    *,
    progress: Progress | None = None,
) -> RunResult:
    """Serve `workload` with real schedulers and models that are only waited for; measured times enter the records."""
    blocks = cluster.kv_blocks if cluster.kv_blocks is not None else cost.spec.kv_blocks
    _check(workload, cluster, blocks)
    if engine.scheduling is Scheduling.centralized:
        with SchedulerProcess(CentralScheduler, scheduler, cluster, blocks) as process:
            served: StubCluster = CentralizedCluster(workload, cluster, cost, process, None)
            _run(served, progress)
    else:
        round_s = scheduler.migration.period_s if scheduler.migration.enabled else None
        with SchedulerProcess(GlobalScheduling, scheduler, cluster, blocks) as process:
            served = PerInstanceCluster(workload, cluster, cost, process, round_s, blocks)
            _run(served, progress)
    return RunResult(
        requests=_request_columns(served, workload),
        events=_event_columns(served),
        instances={name: [] for name in INSTANCES.names},
        counters={"iterations": len(served.timings.stall_ps)},
        scalars=_scalars(served, engine.warm_up_s),
    )


def _run(served: StubCluster, progress: Progress | None) -> None:
    """Serve without the garbage collector: here it would visit all instances' objects, and one instance would pay."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        served.run(progress)
    finally:
        if collecting:
            gc.enable()


def _check(workload: Workload, cluster: ClusterSpec, blocks: int) -> None:
    if workload.priority.any():
        raise ConfigError("engine=stub knows no priorities: leave out high_priority_fraction.")
    tokens = workload.prompt_tokens + np.maximum(workload.output_tokens, 1) - 1
    room = (blocks - int(cluster.watermark_fraction * blocks) - 1) * cluster.block_size_tokens
    if tokens.max() > room or workload.prompt_tokens.max() > cluster.max_num_batched_tokens:
        raise ConfigError(
            f"engine=stub rejects no request, and one of {tokens.max()} tokens does not fit into an instance: "
            "take shorter ones, for example with trace=fixed."
        )


def _scalars(served: StubCluster, warm_up_s: float) -> dict[str, float]:
    """Statistics over the iterations between warm-up and last arrival; the scheduler's share over the whole run."""
    timings = served.timings
    ended_s, step_s, stall_s = (_seconds(each) for each in (timings.ended_ps, timings.step_ps, timings.stall_ps))
    first_s, last_s = served.requests[0].arrival_ps / PS_PER_S, served.requests[-1].arrival_ps / PS_PER_S
    counted = (ended_s >= first_s + warm_up_s) & (ended_s <= last_s)
    scalars = {"iterations_counted": float(counted.sum())}
    if counted.any():
        scalars["iteration_slowdown"] = float(1 + stall_s[counted].sum() / step_s[counted].sum())
    scalars["scheduler_busy_share"] = timings.scheduler_busy_ps / (timings.ended_ps[-1] or 1)
    for name, values in (
        ("scheduling_stall", stall_s[counted]),
        ("dispatch", _seconds(timings.dispatch_ps)),
        ("migration_round", _seconds(timings.round_ps)),
    ):
        if len(values):
            p50, p99 = np.percentile(values, (50, 99))
            scalars |= {f"{name}_mean_s": float(values.mean()), f"{name}_p50_s": float(p50)}
            scalars |= {f"{name}_p99_s": float(p99), f"{name}_max_s": float(values.max())}
    return scalars


def _request_columns(served: StubCluster, workload: Workload) -> Columns:
    requests = served.requests
    count = len(requests)
    instance = [r.instance_id for r in requests]
    return {
        "request_id": list(range(count)),
        "arrival_s": workload.arrival_s,
        "sent_s": workload.arrival_s,
        "dispatch_s": _seconds([r.dispatch_ps for r in requests]),
        "first_token_s": _seconds([r.first_token_ps for r in requests]),
        "end_s": _seconds([r.last_token_ps for r in requests]),
        "prompt_tokens": workload.prompt_tokens,
        "output_tokens": [r.output_tokens for r in requests],
        "priority": workload.priority.astype(np.int8),
        "instance_first": instance,
        "instance_last": instance,
        "preemptions": [r.prefills - 1 for r in requests],
        "preemption_loss_s": np.zeros(count),
        "migrations": [0] * count,
        "migration_downtime_s": np.zeros(count),
        "migration_gap_s": np.zeros(count),
        "max_token_gap_s": _seconds([r.longest_gap_ps for r in requests]),
        "exec_s": _seconds([r.exec_ps for r in requests]),
        "status": ["finished"] * count,
        "error": [None] * count,
    }


def _event_columns(served: StubCluster) -> Columns:
    order = sorted(range(len(served.requests)), key=lambda i: (served.requests[i].dispatch_ps, i))
    return {
        "time_s": _seconds([served.requests[i].dispatch_ps for i in order]),
        "kind": ["dispatch"] * len(order),
        "instance_id": [served.requests[i].instance_id for i in order],
        "request_id": order,
        "detail": [None] * len(order),
    }


def _seconds(times_ps: list[int]) -> npt.NDArray[np.float64]:
    return np.array(times_ps, dtype=np.float64) / PS_PER_S
