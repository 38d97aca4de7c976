"""The scheduler looks at few instances and decides as if it had looked at all of them."""

from __future__ import annotations

import pytest
from audit import Audit
from cases import Case, cases, examples, workload
from hypothesis import given

from llumnix import scheduler
from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.cost import StepCost
from llumnix.engines.sim.spec import SimEngine
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.migration import MigrationPolicy
from llumnix.policies.spec import LoadReports, Scheduler


def audited(case: Case) -> Audit:
    """Run a case with every decision checked."""
    cluster = case.build()
    audit = Audit(cluster, case.scheduler)
    cluster.run()
    assert audit.dispatches == sum(r.status == "finished" for r in cluster.requests)
    return audit


@pytest.mark.parametrize("few_instances", [scheduler.FEW_INSTANCES, -1000], ids=["few", "as many"])
@pytest.mark.parametrize("load_reports", LoadReports)
def test_every_decision_is_that_of_brute_force(
    load_reports: LoadReports, few_instances: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a round asks who can be part of a pair, as it does among many instances."""
    monkeypatch.setattr(scheduler, "FEW_INSTANCES", few_instances)

    @examples(50)
    @given(cases(load_reports, persistent_pairs=False))
    def check(case: Case) -> None:
        audited(case)

    check()


STEPS = StepCost(step_gap_ms=5, decode_base_ms=25, prefill_base_ms=10)


def test_a_round_sees_a_queue_that_has_formed_during_the_step_under_way() -> None:
    """With immediate reports: at 0.59 s a request queues behind another, at 0.6 s, in the same step, is a round."""
    audit = audited(
        Case(
            workload([(0, 16, 100, 0), (0, 16, 100, 0), (0.59, 320, 5, 0)]),
            ClusterSpec(instances=2, kv_blocks=100, max_num_seqs=1),
            STEPS,
            Scheduler(
                load_reports=LoadReports.immediate,
                migration=MigrationPolicy(enabled=True, out_threshold_blocks=45, in_threshold_blocks=45),
            ),
            SimEngine(),
        )
    )
    assert audit.started > 0


PERSISTENT = Case(
    workload([(0, 16, 10, 0), (0, 16, 100, 0), (0.1, 320, 50, 0)]),
    ClusterSpec(instances=2, kv_blocks=100, max_num_seqs=1),
    StepCost(step_gap_ms=5, decode_base_ms=25, prefill_base_ms=10, control_ms=100),
    Scheduler(
        dispatch=DispatchRule.round_robin,
        migration=MigrationPolicy(enabled=True, out_threshold_blocks=45, in_threshold_blocks=45, persistent_pairs=True),
    ),
    SimEngine(),
)


def test_a_parted_pair_starts_nothing() -> None:
    """The round at 0.4 s parts the pair while it is between two migrations."""
    audited(PERSISTENT)
