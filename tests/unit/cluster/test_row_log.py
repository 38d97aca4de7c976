"""Rows that are packed into arrays now and then, and times in them that become seconds."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from llumnix.cluster import virtual
from llumnix.cluster.row_log import RowLog
from llumnix.engines.sim.cost import PS_PER_S

ROWS = st.lists(st.tuples(st.integers(-1, 2**62), st.sampled_from(["a", "bc"]), st.one_of(st.none(), st.text())))


@given(st.lists(ROWS))
def test_columns_are_those_of_the_rows_however_they_were_packed(parts: list[list[tuple[int, str, str | None]]]) -> None:
    log = RowLog(time_ps=int, kind=object, detail=object)
    for part in parts:
        for row in part:
            log.add(row)
        log.pack()
    rows = [row for part in parts for row in part]
    columns = log.columns()
    assert list(zip(*(column.tolist() for column in columns.values()), strict=True)) == rows
    assert [columns["time_ps"].dtype, columns["kind"].dtype] == [int, object]


def test_rows_that_were_never_packed_are_there() -> None:
    log = RowLog(freeness=float, draining=bool)
    log.add((float("inf"), True))
    columns = log.columns()
    assert columns["freeness"].tolist() == [float("inf")]
    assert columns["draining"].tolist() == [True]


@example([9_007_199_254_740_995, 3])
@given(st.lists(st.integers(0, 2**62)))
def test_picoseconds_become_seconds_as_integers_do_also_above_the_integers_of_a_float(times_ps: list[int]) -> None:
    seconds = virtual._seconds(np.array([*times_ps, -1], dtype=np.int64)).tolist()
    assert seconds[:-1] == [ps / PS_PER_S for ps in times_ps]
    assert math.isnan(seconds[-1])
