"""Random small runs that press on everything at once: memory, seats, budgets, ties in time, and migrations."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from reference import ReferenceInstance
from reference_chunked import ReferenceChunked

from llumnix.cluster.spec import ClusterSpec
from llumnix.cluster.virtual import RunResult, VirtualCluster
from llumnix.engines.sim.cost import CostModel, MixedCost, StepCost
from llumnix.engines.sim.spec import Batching, SimEngine
from llumnix.load import FreenessRule, QueueDemand
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.migration import HighPriorityMoves, MigrationMethod, MigrationPolicy, RequestChoice
from llumnix.policies.scaling import ScalingPolicy, Victim
from llumnix.policies.spec import LoadReports, QueueOrder, Scheduler
from llumnix.request import Workload

CHOICES = 7
"""Seed of what a dispatcher that chooses at random draws."""
REFERENCES = {Batching.prefill_first: ReferenceInstance, Batching.chunked: ReferenceChunked}
EXAMPLES = os.environ.get("LLUMNIX_EXAMPLES")
"""How many random cases each property gets; unset: few, and the same ones every time."""


def examples(quick: int) -> settings:
    """Return the settings of a property test that runs `quick` fixed cases, or LLUMNIX_EXAMPLES random ones."""
    return settings(
        max_examples=int(EXAMPLES) if EXAMPLES else quick,
        derandomize=not EXAMPLES,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@dataclass(frozen=True)
class Case:
    """Everything that one run depends on."""

    workload: Workload
    cluster: ClusterSpec
    step_cost: StepCost
    scheduler: Scheduler
    engine: SimEngine
    kv_bytes_per_token: int = 1000

    def build(self, instance_type: Any = None) -> VirtualCluster:
        """Return the cluster before its run; on fast instances unless another type is given."""
        chosen = {} if instance_type is None else {"instance_type": instance_type}
        cost = CostModel(self.step_cost, self.kv_bytes_per_token)
        uniform = random.Random(CHOICES).random
        return VirtualCluster(self.workload, self.cluster, self.engine, cost, self.scheduler, uniform, **chosen)

    def run_step_by_step(self) -> RunResult:
        """Return the result of one run on the slow instances."""
        return self.build(REFERENCES[self.engine.batching]).run()

    def run(self, instance_type: Any = None) -> RunResult:
        """Return the result of one run."""
        return self.build(instance_type).run()


def workload(rows: list[tuple[float, int, int, int]], label: str = "test") -> Workload:
    """Return a workload of (arrival in s, prompt tokens, output tokens, priority) rows."""
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return Workload(
        arrival_s=np.array(columns[0], dtype=np.float64),
        prompt_tokens=np.array(columns[1], dtype=np.int64),
        output_tokens=np.array(columns[2], dtype=np.int64),
        priority=np.array(columns[3], dtype=np.int64),
        label=label,
        rows_in=len(rows),
    )


def settled(case: Case, instance_type: Any = None) -> VirtualCluster:
    """Return the cluster of a case with one small request more, that comes when all else, migrations too, has ended."""
    ends_s = case.run().requests["end_s"]
    last_s = max([*ends_s[np.isfinite(ends_s)], *case.workload.arrival_s])
    return replace(case, workload=followed_by(case.workload, (last_s + 30.0, 1, 1, 0))).build(instance_type)


def followed_by(before: Workload, *rows: tuple[float, int, int, int]) -> Workload:
    """Return a workload with more requests at its end."""
    columns = (before.arrival_s, before.prompt_tokens, before.output_tokens, before.priority)
    return workload([*zip(*(c.tolist() for c in columns), strict=True), *rows], before.label)


A10 = StepCost(
    step_gap_ms=4.0,
    decode_base_ms=31.0,
    decode_per_request_ms=0.55,
    decode_per_token_ms=0.00144,
    prefill_base_ms=-0.4,
    prefill_per_token_ms=0.2112,
    prefill_per_token2_ms=3.98e-6,
    copy_latency_ms=28.0,
    last_copy_latency_ms=14.0,
    copy_bandwidth_gb_s=2.56,
    migration_step_ms=0.7,
)
"""Step costs of the size that they have for LLaMA-7B on an A10."""


def heavy_tailed(
    requests: int, *, rate: float, mean_tokens: int, high_fraction: float = 0.0, seed: int = 0
) -> Workload:
    """Return log-normal prompts and outputs of the given mean, which arrive as a Poisson process."""
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(mean_tokens) - 0.5, 1.0, (2, requests)).astype(np.int64) + 1
    return Workload(
        arrival_s=np.cumsum(rng.exponential(1 / rate, requests)),
        prompt_tokens=lengths[0],
        output_tokens=lengths[1],
        priority=(rng.random(requests) < high_fraction).astype(np.int64),
        label="heavy-tailed",
        rows_in=requests,
    )


# Round numbers make events of different instances fall on the same instant; the others make them miss each other.
_GAPS_MS = st.sampled_from([0, 0, 0, 1, 4, 10, 10, 20, 31, 35, 50, 100, 300, 0.37, 12.345678, 77.7])


@st.composite
def workloads(draw: st.DrawFn, most: int = 30) -> Workload:
    """Return up to `most` requests in bursts and alone."""
    fewest = draw(st.sampled_from([1, most // 4, most // 2]))
    longest_prompt = draw(st.sampled_from([4, 16, 40, 90]))
    longest_output = draw(st.sampled_from([2, 10, 60, 120, 120]))
    highs = draw(st.sampled_from([(0,), (0, 0, 0, 1), (0, 1)]))
    request = st.tuples(
        _GAPS_MS, st.integers(1, longest_prompt), st.integers(1, longest_output), st.sampled_from(highs)
    )
    rows, now_ms = [], 0.0
    for gap_ms, prompt, output, priority in draw(st.lists(request, min_size=fewest, max_size=most)):
        now_ms += gap_ms
        rows.append((now_ms / 1000, prompt, output, priority))
    return workload(rows)


@st.composite
def clusters(draw: st.DrawFn, batching: Batching) -> ClusterSpec:
    """Return a few small instances, most of them too small for comfort."""
    max_num_seqs = draw(st.sampled_from([1, 2, 3, 5, 256, 256, 256]))
    max_num_batched_tokens = draw(st.sampled_from([40, 100, 12800]))
    if batching is Batching.chunked:
        max_num_seqs = min(max_num_seqs, 30)  # more than there are requests
        max_num_batched_tokens = draw(st.sampled_from([max_num_seqs + 1, max_num_seqs + 7, 40, 100, 12800]))
    block_size = draw(st.sampled_from([1, 2, 4, 4, 7, 16]))
    tokens = draw(st.sampled_from([120, 160, 200, 260, 400, 2000]))
    return ClusterSpec(
        instances=draw(st.sampled_from([1, 2, 2, 3, 3, 4])),
        block_size_tokens=block_size,
        kv_blocks=max(2, tokens // block_size),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        watermark_fraction=draw(st.sampled_from([0.0, 0.01, 0.05, 0.2])),
    )


@st.composite
def step_costs(draw: st.DrawFn) -> StepCost:
    """Return step costs: whole milliseconds as often as not, growing with the batch and its tokens or not at all."""
    dense = draw(st.booleans())
    return StepCost(
        step_gap_ms=draw(st.sampled_from([0, 4, 1.5])),
        decode_base_ms=draw(st.sampled_from([1, 6, 10, 31.0, 30.97])),
        decode_per_request_ms=draw(st.sampled_from([0, 0, 1, 0.55])),
        decode_per_token_ms=draw(st.sampled_from([0, 0, 0.00144, 0.05, 0.3])),
        prefill_floor_ms=draw(st.sampled_from([0, 20])),
        prefill_base_ms=draw(st.sampled_from([-0.4, 1, 10])),
        prefill_per_token_ms=draw(st.sampled_from([0.1, 0.2112, 1])),
        prefill_per_token2_ms=draw(st.sampled_from([0, 3.98e-6, 0.01])),
        prefill_per_request_ms=draw(st.sampled_from([0, 1])),
        prefill_per_context_ms=draw(st.sampled_from([0, 0.02])),
        dense_tokens=[1, 5, 30] if dense else [],
        dense_ms=[5.0, 5.5, 20.0] if dense else [],
        mixed=draw(st.sampled_from([None, MixedCost(base_ms=1, decode_per_request_ms=0.7, decode_per_token_ms=0.07)])),
        copy_latency_ms=draw(st.sampled_from([0, 1, 28, 300])),
        last_copy_latency_ms=draw(st.sampled_from([0, 1, 14, 100])),
        copy_bandwidth_gb_s=draw(st.sampled_from([100, 1e-2, 1e-3, 2.5e-4])),
        migration_step_ms=draw(st.sampled_from([0, 0, 2, 5.5])),
        control_ms=draw(st.sampled_from([1, 3, 10, 2.013])),
    )


@st.composite
def scalings(draw: st.DrawFn, instances: int) -> ScalingPolicy:
    """Return a policy for a cluster that begins with so many instances; every other one leaves it at that."""
    return ScalingPolicy(
        enabled=draw(st.booleans()),
        low_blocks=draw(st.sampled_from([-10.0, 0.0, 3.0, 10.0, 50.0])),
        width_blocks=draw(st.sampled_from([0.0, 5.0, 50.0])),
        check_period_s=draw(st.sampled_from([0.05, 0.1, 0.37])),
        first_check_s=draw(st.sampled_from([0.01, 0.1, 0.5])),
        startup_s=draw(st.sampled_from([0.0, 0.1, 0.3])),
        min_instances=draw(st.integers(1, instances)),
        max_instances=instances + draw(st.integers(0, 3)),
        at_most_per_check=draw(st.sampled_from([None, 1])),
        victim=draw(st.sampled_from(Victim)),
    )


@st.composite
def schedulers(
    draw: st.DrawFn, instances: int, load_reports: LoadReports | None, persistent_pairs: bool | None
) -> Scheduler:
    """Return any combination of the scheduler's choices."""
    out_blocks = draw(st.sampled_from([-3.0, 0.0, 3.0, 10.0, 50.0, 1000.0]))
    return Scheduler(
        name="test",
        dispatch=draw(st.sampled_from([DispatchRule.freest, *DispatchRule])),
        load_reports=load_reports or draw(st.sampled_from(LoadReports)),
        queue_order=draw(st.sampled_from(QueueOrder)),
        freeness=FreenessRule(
            queue_demand=draw(st.sampled_from(QueueDemand)),
            defragment=draw(st.sampled_from([True, True, False])),
            priorities=draw(st.booleans()),
            headroom_target_tokens=draw(st.sampled_from([0, 50, 100])),
        ),
        migration=MigrationPolicy(
            enabled=draw(st.sampled_from([True, True, True, True, False])),
            period_s=draw(st.sampled_from([0.01, 0.035, 0.05, 0.2])),
            out_threshold_blocks=out_blocks,
            in_threshold_blocks=out_blocks + draw(st.sampled_from([0.0, 0.0, 2.0])),
            request_choice=draw(st.sampled_from(RequestChoice)),
            high_priority=draw(st.sampled_from(HighPriorityMoves)),
            preempted_is_source=draw(st.booleans()),
            persistent_pairs=draw(st.booleans()) if persistent_pairs is None else persistent_pairs,
            method=draw(st.sampled_from([MigrationMethod.copy, MigrationMethod.copy, MigrationMethod.recompute])),
            max_stages=draw(st.integers(1, 4)),
            last_stage_max_blocks=draw(st.sampled_from([0, 0, 1, 2, 5])),
        ),
        scaling=draw(scalings(instances)),
    )


@st.composite
def cases(
    draw: st.DrawFn,
    load_reports: LoadReports | None = None,
    persistent_pairs: bool | None = None,
    batching: Batching | None = None,
) -> Case:
    """Return a whole run; of a choice that is None, either reading."""
    batching = batching or draw(st.sampled_from(Batching))
    cluster = draw(clusters(batching))
    return Case(
        workload=draw(workloads()),
        cluster=cluster,
        step_cost=draw(step_costs()),
        scheduler=draw(schedulers(cluster.instances, load_reports, persistent_pairs)),
        engine=SimEngine(
            sample_period_s=draw(st.sampled_from([0.0471, 0.3, 1.0])),
            batching=batching,
            async_scheduling=draw(st.booleans()),
            prefix_caching=draw(st.booleans()),
        ),
    )
