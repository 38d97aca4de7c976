"""The tidy table of points: means, intervals, gaps, and joining with the paper's."""

from __future__ import annotations

import io
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.points import COLUMNS, KEY, aggregate, missing, paper_points, to_csv


def samples(values: list[float], **point: object) -> pd.DataFrame:
    """The same point measured in several runs."""
    key = {"figure": "fig11", "row": "M-M", "metric": "Request Mean", "series": "Llumnix", "x_name": "request_rate"}
    return pd.DataFrame([{**key, "x": 7.5, "unit": "s", **point, "value": value} for value in values])


def test_mean_and_t_interval_by_hand() -> None:
    (point,) = aggregate(samples([1.0, 2.0, 3.0])).to_dict("records")
    half = 4.302653 * 1.0 / math.sqrt(3)  # t(0.975, 2) of Student's table
    assert (point["value"], point["n"]) == (2.0, 3)
    assert point["ci_low"] == pytest.approx(2.0 - half, abs=1e-5)
    assert point["ci_high"] == pytest.approx(2.0 + half, abs=1e-5)


def test_one_run_has_no_interval() -> None:
    (point,) = aggregate(samples([5.0])).to_dict("records")
    assert (point["value"], point["n"]) == (5.0, 1)
    assert math.isnan(point["ci_low"])
    assert math.isnan(point["ci_high"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=8))
def test_the_interval_is_around_the_mean_which_is_within_the_values(values: list[float]) -> None:
    (point,) = aggregate(samples(values)).to_dict("records")
    slack = 1e-9 * max(values, default=0.0) + 1e-12
    assert point["ci_low"] <= point["value"] + slack
    assert point["value"] <= point["ci_high"] + slack
    assert min(values) - slack <= point["value"] <= max(values) + slack


def test_points_keep_the_order_in_which_they_came() -> None:
    frame = pd.concat([samples([1.0, 2.0], row="S-S"), samples([3.0], row="M-M"), samples([4.0], row="L-L")])
    points = aggregate(frame)
    assert points["row"].tolist() == ["S-S", "M-M", "L-L"]
    assert points["n"].tolist() == [2, 1, 1]


def test_csv_has_the_papers_columns_and_comes_back_equal() -> None:
    points = aggregate(pd.concat([samples([1 / 3, 2 / 3]), samples([0.1], x=7.75)]))
    text = to_csv(points)
    assert text.splitlines()[0] == "figure,row,metric,series,x_name,x,value,unit,ci_low,ci_high,n"
    assert text == to_csv(points)
    back = pd.read_csv(io.StringIO(text))
    np.testing.assert_allclose(back["value"], points["value"], rtol=1e-8)
    assert back["x"].tolist() == [7.5, 7.75]


def test_the_papers_points_have_unique_keys_and_our_columns() -> None:
    paper = paper_points("fig11")
    assert not paper.duplicated(KEY).any()
    assert [*KEY, "value", "unit"] == paper.columns.tolist()
    assert set(paper.columns) <= set(COLUMNS)
    assert len(paper) == 560
    assert Counter(paper.drop_duplicates(["row", "series"])["series"]) == {
        "INFaaS++": 7,
        "Llumnix": 7,
        "Round-Robin": 2,
    }


def test_missing_names_series_that_did_not_run_and_rates_that_are_not_there() -> None:
    paper = paper_points("fig11")
    ours = paper[~((paper["row"] == "L-S") & (paper["series"] == "INFaaS++"))]
    ours = ours[~((ours["row"] == "M-M") & (ours["x"] == 7.7) & (ours["series"] == "Llumnix"))]
    assert missing(ours, paper) == {("L-S", "INFaaS++"): [10, 12, 14, 16, 18], ("M-M", "Llumnix"): [7.7]}
    assert missing(paper, paper) == {}
