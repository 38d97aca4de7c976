"""What a run gives back, in whichever world it took place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Columns = dict[str, Any]


@dataclass(slots=True)
class RunResult:
    """What happened: columns of llumnix.record's tables, and counts of the cluster's own work. `steps` on demand.

    `scalars` are numbers for summary.json that cannot be had from the tables, with their units in the names. `sizes` is
    how many instances there were when, where that changes: see llumnix.metrics.resource_cost.
    """

    requests: Columns
    events: Columns
    instances: Columns
    steps: Columns | None = None
    counters: dict[str, int] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    sizes: Columns | None = None
