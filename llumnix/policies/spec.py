"""One scheduler variant: how it dispatches, what it can see, and whether it migrates. Schema of conf/scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from llumnix.load import FreenessRule
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.migration import MigrationPolicy
from llumnix.policies.scaling import ScalingPolicy


class LoadReports(StrEnum):
    """How fresh the scheduler's view is.

    completed_step: the state in which an instance's last completed step began, as released: a report travels with the
    step's result, an idle instance reports nothing new, and requests dispatched since then are not seen.
    immediate: the state right now.
    """

    completed_step = "completed_step"
    immediate = "immediate"


class QueueOrder(StrEnum):
    """Where a high-priority request enters an instance's queue.

    front: before all normal ones (paper). second_to_last: what the released code does by mistake. arrival: like any.
    """

    front = "front"
    second_to_last = "second_to_last"
    arrival = "arrival"


@dataclass(kw_only=True, slots=True)
class Scheduler:
    """A complete set of scheduling choices; each field where paper and released code differ names both readings."""

    name: str = ""
    label: str = ""
    dispatch: DispatchRule = DispatchRule.freest
    load_reports: LoadReports = LoadReports.completed_step
    queue_order: QueueOrder = QueueOrder.front
    freeness: FreenessRule = field(default_factory=FreenessRule)
    migration: MigrationPolicy = field(default_factory=MigrationPolicy)
    scaling: ScalingPolicy = field(default_factory=ScalingPolicy)
