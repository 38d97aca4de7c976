"""Skipping from event to event gives the records of a walk through every step, to the picosecond."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, cases, examples, workload
from hypothesis import given
from reference import ReferenceInstance

from llumnix.cluster.spec import ClusterSpec
from llumnix.cluster.virtual import RunResult
from llumnix.engines.sim.cost import StepCost
from llumnix.engines.sim.spec import SimEngine
from llumnix.policies.migration import MigrationPolicy
from llumnix.policies.spec import LoadReports, Scheduler


def assert_same_records(fast: RunResult, slow: RunResult) -> None:
    for table in ("events", "requests", "instances"):
        ours, theirs = getattr(fast, table), getattr(slow, table)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(
                np.asarray(ours[name]), np.asarray(theirs[name]), err_msg=f"{table}.{name} (fast, step by step)"
            )


@pytest.mark.parametrize("load_reports", LoadReports)
def test_random_small_runs_are_those_of_the_step_by_step_reference(load_reports: LoadReports) -> None:
    @examples(100)
    @given(cases(load_reports))
    def compare(case: Case) -> None:
        assert_same_records(case.run(), case.run(ReferenceInstance))

    compare()
