"""steps.parquet of the simulator: runs of steps that, taken apart, are the steps of the reference, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from cases import REFERENCES, Case, cases, examples
from hypothesis import given


def steps_of(case: Case, instance_type: type | None) -> dict[str, Any]:
    case = replace(case, engine=replace(case.engine, record_steps=True))
    steps = case.build(instance_type).run().steps
    assert steps is not None
    return steps


def one_by_one(steps: dict[str, Any]) -> Iterator[tuple[int, int, int]]:
    """(instance, batch, tokens) of every step, by instance and time."""
    for row in np.lexsort((steps["start_s"], steps["instance_id"])):
        yield from [(steps["instance_id"][row], steps["batch"][row], steps["tokens"][row])] * steps["steps"][row]


@examples(60)
@given(cases())
def test_runs_of_steps_are_the_steps_of_the_reference(case: Case) -> None:
    fast, slow = steps_of(case, None), steps_of(case, REFERENCES[case.engine.batching])
    assert set(slow["steps"]) <= {1}
    assert list(one_by_one(fast)) == list(one_by_one(slow))
    assert np.isclose(np.sum(fast["duration_s"]), np.sum(slow["duration_s"]))


@examples(60)
@given(cases())
def test_nothing_is_recorded_unless_asked_for(case: Case) -> None:
    assert case.run().steps is None
