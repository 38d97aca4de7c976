"""The way from the client to an instance, where it takes time: everything else is as without it, only later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import Case, cases
from hypothesis import given
from hypothesis import strategies as st
from test_exactness import assert_same_records

from llumnix.engines.sim.spec import SimEngine
from llumnix.errors import ConfigError


def with_front_end(case: Case, front_end_s: float) -> Case:
    return replace(case, engine=replace(case.engine, front_end_s=front_end_s))


@given(cases(), st.sampled_from([0.004, 0.5, 3.0]))
def test_requests_are_dispatched_that_much_after_they_were_sent(case: Case, front_end_s: float) -> None:
    late = with_front_end(case, front_end_s)
    result = late.run()
    assert_same_records(result, late.run_step_by_step())
    found = {name: np.asarray(column) for name, column in result.requests.items()}
    sent = found["status"] == "finished"
    np.testing.assert_allclose(found["dispatch_s"][sent], found["arrival_s"][sent] + front_end_s)
    assert (found["first_token_s"][sent] >= found["dispatch_s"][sent] - 1e-9).all()
    kinds, times_s = np.asarray(result.events["kind"], dtype=str), np.asarray(result.events["time_s"])
    for row in np.flatnonzero(np.isin(kinds, ["dispatch", "reject"])):
        sent_s = found["arrival_s"][result.events["request_id"][row]]
        assert times_s[row] == pytest.approx(sent_s + front_end_s, abs=1e-9)


@given(cases())
def test_without_it_nothing_changes(case: Case) -> None:
    first = np.asarray(case.run().requests["first_token_s"])
    alone = np.asarray(with_front_end(case, 0.0).run().requests["first_token_s"])
    np.testing.assert_array_equal(first, alone)


@pytest.mark.parametrize("wrong", [-0.001, float("nan"), float("inf")])
def test_no_time_goes_backwards(wrong: float) -> None:
    with pytest.raises(ConfigError, match=r"engine\.front_end_s must be a number of seconds"):
        SimEngine(front_end_s=wrong)
