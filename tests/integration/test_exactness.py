"""Skipping from event to event gives the records of a walk through every step, to the picosecond."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import A10, Case, cases, examples, heavy_tailed
from hypothesis import given

from llumnix.cluster.spec import ClusterSpec
from llumnix.cluster.virtual import RunResult
from llumnix.engines.sim.spec import Batching, SimEngine
from llumnix.load import QueueDemand
from llumnix.policies.migration import MigrationPolicy, RequestChoice
from llumnix.policies.spec import LoadReports, Scheduler


def assert_same_records(fast: RunResult, slow: RunResult) -> None:
    for table in ("events", "requests", "instances", "sizes"):
        ours, theirs = getattr(fast, table) or {}, getattr(slow, table) or {}
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(
                np.asarray(ours[name]), np.asarray(theirs[name]), err_msg=f"{table}.{name} (fast, step by step)"
            )


@pytest.mark.parametrize("batching", Batching)
@pytest.mark.parametrize("load_reports", LoadReports)
def test_random_small_runs_are_those_of_the_step_by_step_reference(
    load_reports: LoadReports, batching: Batching
) -> None:
    @examples(100)
    @given(cases(load_reports, batching=batching))
    def compare(case: Case) -> None:
        assert_same_records(case.run(), case.run_step_by_step())

    compare()


RELEASED = Scheduler(
    migration=MigrationPolicy(enabled=True, out_threshold_blocks=10, in_threshold_blocks=10, period_s=0.2)
)
PAPER = Scheduler(
    freeness=replace(RELEASED.freeness, queue_demand=QueueDemand.head_of_line),
    migration=replace(
        RELEASED.migration,
        persistent_pairs=True,
        request_choice=RequestChoice.shortest,
        preempted_is_source=False,
        max_stages=4,
        last_stage_max_blocks=2,
    ),
)


@pytest.mark.parametrize("batching", Batching)
@pytest.mark.parametrize("scheduler", [RELEASED, PAPER], ids=["released", "paper"])
def test_a_heavy_tailed_run_is_that_of_the_step_by_step_reference(scheduler: Scheduler, batching: Batching) -> None:
    case = Case(
        workload=heavy_tailed(300, rate=3.0, mean_tokens=256, high_fraction=0.1),
        cluster=ClusterSpec(instances=3, kv_blocks=400),
        step_cost=A10,
        scheduler=scheduler,
        engine=SimEngine(sample_period_s=1.0, batching=batching),
        kv_bytes_per_token=524_288,
    )
    fast = case.run()
    assert_same_records(fast, case.run_step_by_step())
    kinds = set(fast.events["kind"])
    assert {"preempt", "migrate_commit"} <= kinds, "a run in which little happens shows little"
