"""What a scaling decision leads to, and the account of how many instances there were, simulated or real."""

from __future__ import annotations

from typing import Protocol

from llumnix.cluster.result import Columns
from llumnix.policies.scaling import CancelDrain, Decision, ScaleDown, ScaleUp


class Fleet(Protocol):
    """Who carries out decisions."""

    def start(self) -> int:
        """Ask for one more instance and return its id; ids are given once."""

    def set_draining(self, instance_id: int, draining: bool) -> None: ...
    def note(self, kind: str, instance_id: int, detail: str) -> None: ...


def carry_out(decision: Decision, fleet: Fleet) -> None:
    """Do what was decided, and note it in the events."""
    match decision:
        case ScaleUp(instances, freeness):
            for _ in range(instances):
                fleet.note("scale_up", fleet.start(), f"freeness {freeness:.2f}")
        case CancelDrain(instance_id, freeness):
            fleet.set_draining(instance_id, False)
            fleet.note("drain", instance_id, f"cancelled, freeness {freeness:.2f}")
        case ScaleDown(instance_id, freeness):
            fleet.note("scale_down", instance_id, f"freeness {freeness:.2f} without it")
            fleet.note("drain", instance_id, "begun")
            fleet.set_draining(instance_id, True)


class Sizes:
    """The number of instances over time: a row for each change, and one for the end of the run."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, int, int, int]] = []

    def count(self, time_s: float, starting: int, up: int, steps: int) -> None:
        """Add a row: from `time_s` on `starting` instances have been asked for and do not serve yet, `up` serve or
        drain; `steps` have been completed before, on any instance.
        """
        self._rows.append((time_s, starting, up, steps))

    def columns(self) -> Columns:
        """Return the rows for llumnix.metrics.resource_cost."""
        return dict(zip(("time_s", "starting", "up", "steps"), map(list, zip(*self._rows, strict=True)), strict=True))
