"""Claims as data, their values on tables made by hand, their intervals, verdicts and reports."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.claims.claim import Claim, Kind, Verdict, claims_of
from analysis.claims.evaluate import evaluate
from analysis.claims.report import row_of_record, to_json, to_text
from analysis.points import paper_points

Values = dict[tuple[str, float], tuple[list[float], list[float]]]


def frame(values: Values) -> pd.DataFrame:
    """(row, x) -> (runs of the baseline, runs of our own series)."""
    rows = [
        {"row": row, "metric": "M", "series": series, "x": x, "replicate": replicate, "value": value}
        for (row, x), of_series in values.items()
        for series, runs in zip(("Base", "Own"), of_series, strict=True)
        for replicate, value in enumerate(runs)
    ]
    return pd.DataFrame(rows, columns=["row", "metric", "series", "x", "replicate", "value"])


def claim(kind: Kind, expected: float, **changes: object) -> Claim:
    fields = {"id": "c", "text": "t", "kind": kind, "metric": "M", "own": "Own", "baseline": "Base", "rows": ("A", "B")}
    return Claim(**{**fields, "expected": expected, **changes})  # type: ignore[arg-type]


TWO_POINTS: Values = {("A", 1.0): ([4.0, 4.0], [2.0, 2.0]), ("B", 2.0): ([9.0, 9.0], [3.0, 3.0])}


def test_ratio_up_to_takes_the_largest_and_names_its_point() -> None:
    result = evaluate(claim(Kind.RATIO_UP_TO, 3.0), frame(TWO_POINTS), frame(TWO_POINTS))
    assert (result.value, result.point, result.typical) == (3.0, "B @ 2", 2.5)
    assert (result.points, result.points_expected, result.n) == (2, 2, 2)
    assert (result.paper, result.paper_point) == (3.0, "B @ 2")
    assert result.verdict is Verdict.REPRODUCED


def test_ratio_from_takes_the_smallest_and_largest_reduction_is_of_the_largest_ratio() -> None:
    result = evaluate(claim(Kind.RATIO_FROM, 2.0), frame(TWO_POINTS), frame(TWO_POINTS))
    assert (result.value, result.point, result.typical) == (2.0, "A @ 1", 2.5)
    assert (result.verdict, result.claim.show(result.value)) == (Verdict.REPRODUCED, "2.00x")
    result = evaluate(claim(Kind.REDUCTION_UP_TO, 0.6), frame(TWO_POINTS), frame(TWO_POINTS))
    assert (result.value, result.point) == (pytest.approx(2 / 3), "B @ 2")
    assert (result.verdict, result.claim.show(result.value)) == (Verdict.REPRODUCED, "66.7 %")
    assert claim(Kind.REDUCTION_UP_TO, 0.16).verdict(0.12, 0.1, 0.14, complete=True) is Verdict.PARTLY
    assert claim(Kind.REDUCTION_UP_TO, 0.16).verdict(0.13, 0.1, 0.16, complete=True) is Verdict.REPRODUCED
    assert claim(Kind.REDUCTION_UP_TO, 0.16).verdict(-0.1, -0.2, 0.0, complete=True) is Verdict.NOT


def test_reduction_is_the_mean_of_ratios_and_its_other_reading_the_ratio_of_sums() -> None:
    result = evaluate(claim(Kind.REDUCTION_MEAN, 0.58), frame(TWO_POINTS), frame(TWO_POINTS))
    assert result.value == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result.typical == pytest.approx(1 - 5 / 13)
    assert result.verdict is Verdict.REPRODUCED


def test_reduction_leaves_out_points_without_anything_to_reduce() -> None:
    values: Values = {("A", 1.0): ([0.0], [0.0]), ("A", 2.0): ([0.0], [0.5]), ("B", 2.0): ([4.0], [1.0])}
    assert evaluate(claim(Kind.REDUCTION_MEAN, 0.7), frame(values), frame(values)).value == pytest.approx(0.75)


def test_absolute_mean_bound_and_flat_by_hand() -> None:
    table = frame({**TWO_POINTS, ("A", 2.0): ([2.0, 2.0], [2.2, 2.2])})
    assert evaluate(claim(Kind.ABSOLUTE_MEAN, 3.0), table, table).value == pytest.approx((2 + 6 - 0.2) / 3)
    bound = evaluate(claim(Kind.BOUND, 0.1), table, table)
    assert bound.value == pytest.approx(0.1)
    assert bound.point == "A @ 2"
    flat = evaluate(claim(Kind.FLAT, 0.05), table, table)
    assert (flat.value, flat.point) == (pytest.approx(0.1), "A @ 2")
    assert flat.verdict is Verdict.NOT or flat.verdict is Verdict.PARTLY


@pytest.mark.parametrize(
    ("kind", "expected", "measured", "low", "high", "verdict"),
    [
        (Kind.RATIO_UP_TO, 2.0, 2.0, math.nan, math.nan, Verdict.REPRODUCED),
        (Kind.RATIO_UP_TO, 2.0, 1.75, 1.6, 1.9, Verdict.REPRODUCED),
        (Kind.RATIO_UP_TO, 2.0, 1.70, 1.6, 1.9, Verdict.PARTLY),  # ln 1.70 / ln 2 = 0.77
        (Kind.RATIO_UP_TO, 2.0, 2.5, 2.4, 2.6, Verdict.PARTLY),  # more than the paper's is not the paper's
        (Kind.RATIO_UP_TO, 2.0, 2.0, 0.9, 4.4, Verdict.PARTLY),  # may be no gain at all
        (Kind.RATIO_UP_TO, 2.0, 1.0, 0.9, 1.1, Verdict.NOT),
        (Kind.RATIO_UP_TO, 34.4, 24.0, math.nan, math.nan, Verdict.REPRODUCED),
        (Kind.RATIO_UP_TO, 34.4, 18.2, math.nan, math.nan, Verdict.PARTLY),  # ln ratio 0.82, but half of it
        (Kind.RATIO_UP_TO, 34.4, math.inf, math.nan, math.nan, Verdict.PARTLY),
        (Kind.REDUCTION_MEAN, 0.84, 0.75, 0.7, 0.8, Verdict.REPRODUCED),
        (Kind.REDUCTION_MEAN, 0.84, 0.73, 0.7, 0.8, Verdict.PARTLY),
        (Kind.REDUCTION_MEAN, 0.84, -0.1, -0.2, 0.0, Verdict.NOT),
        (Kind.ABSOLUTE_MEAN, 1.3, 1.6, 1.5, 1.7, Verdict.REPRODUCED),
        (Kind.ABSOLUTE_MEAN, 1.3, 0.9, 0.8, 1.0, Verdict.PARTLY),
        (Kind.ABSOLUTE_MEAN, 1.3, 0.0, 0.0, 0.0, Verdict.NOT),
        (Kind.BOUND, 0.045, 0.045, math.nan, math.nan, Verdict.REPRODUCED),
        (Kind.BOUND, 0.045, 0.09, math.nan, math.nan, Verdict.PARTLY),
        (Kind.BOUND, 0.045, 0.10, math.nan, math.nan, Verdict.NOT),
        (Kind.FLAT, 0.05, 0.04, math.nan, math.nan, Verdict.REPRODUCED),
        (Kind.FLAT, 0.05, 0.30, math.nan, math.nan, Verdict.NOT),
    ],
)
def test_verdicts_follow_the_written_rule(
    kind: Kind, expected: float, measured: float, low: float, high: float, verdict: Verdict
) -> None:
    assert claim(kind, expected).verdict(measured, low, high, complete=True) is verdict


def test_missing_points_cap_the_verdict_and_missing_series_are_not_run() -> None:
    paper = frame(TWO_POINTS)
    one_point = evaluate(claim(Kind.RATIO_UP_TO, 2.0), paper[paper["row"] == "A"], paper)
    assert (one_point.value, one_point.points, one_point.points_expected) == (2.0, 1, 2)
    assert one_point.verdict is Verdict.PARTLY
    for absent in (paper[paper["series"] == "Own"], paper.iloc[:0]):
        not_run = evaluate(claim(Kind.RATIO_UP_TO, 2.0), absent, paper)
        assert not_run.verdict is Verdict.NOT_RUN
        assert not_run.paper == 3.0
        assert math.isnan(not_run.value)


def test_points_the_paper_does_not_have_do_not_count() -> None:
    beyond = {**TWO_POINTS, ("B", 99.0): ([100.0], [1.0])}
    assert evaluate(claim(Kind.RATIO_UP_TO, 3.0), frame(beyond), frame(TWO_POINTS)).value == 3.0


def test_no_interval_where_a_point_has_one_run() -> None:
    values = {**TWO_POINTS, ("A", 1.0): ([4.0], [2.0, 2.0])}
    result = evaluate(claim(Kind.RATIO_UP_TO, 3.0), frame(values), frame(TWO_POINTS))
    assert math.isnan(result.low)
    assert result.n == 1


def test_interval_of_a_difference_is_welchs() -> None:
    base, own = [3.0, 4.0, 5.0], [1.0, 1.2, 0.8]
    result = evaluate(claim(Kind.ABSOLUTE_MEAN, 3.0), frame({("A", 1.0): (base, own)}), frame(TWO_POINTS))
    expected = stats.ttest_ind(base, own, equal_var=False).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), rel=1e-4)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(40):
        runs = frame({("A", 1.0): (list(rng.normal(10, 0.5, 5)), list(rng.normal(4, 0.2, 5)))})
        result = evaluate(claim(Kind.RATIO_UP_TO, 2.5), runs, frame(TWO_POINTS))
        hits += result.low <= 2.5 <= result.high
    assert 34 <= hits <= 40  # 38 on average


positive = st.floats(0.01, 1e3)


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.tuples(st.sampled_from("AB"), st.integers(1, 4)), st.tuples(positive, positive), min_size=1))
def test_bounds_of_every_kind(pairs: dict[tuple[str, int], tuple[float, float]]) -> None:
    values = {(row, float(x)): ([base], [own]) for (row, x), (base, own) in pairs.items()}
    table = frame(values)
    ratio = evaluate(claim(Kind.RATIO_UP_TO, 2.0), table, table)
    assert ratio.value >= ratio.typical
    assert ratio.value == pytest.approx(max(base / own for base, own in pairs.values()))
    assert evaluate(claim(Kind.REDUCTION_MEAN, 0.5), table, table).value <= 1.0
    assert evaluate(claim(Kind.FLAT, 0.5), table, table).value >= 0.0


def test_the_papers_points_bear_out_the_claims_of_section_6_3() -> None:
    paper = paper_points("fig11")
    claims = claims_of("fig11")
    assert len(claims) == len({each.id for each in claims}) == 16
    results = {each.id: evaluate(each, paper.assign(replicate=0), paper) for each in claims}
    assert {result.verdict for result in results.values()} == {Verdict.REPRODUCED}
    recomputed = {
        "real.round_robin.request_mean": (2.03, "BurstGPT @ 8.5"),
        "real.round_robin.request_p99": (2.93, "BurstGPT @ 8.5"),
        "real.round_robin.prefill_mean": (26.57, "ShareGPT @ 7.75"),
        "real.round_robin.prefill_p99": (34.83, "ShareGPT @ 7"),
        "real.round_robin.decode_p99": (2.01, "ShareGPT @ 7.75"),
        "generated.infaas.prefill_mean": (7.74, "M-M @ 7.8"),
        "generated.infaas.prefill_p99": (14.82, "L-L @ 3"),
        "generated.infaas.decode_p99": (2.05, "S-L @ 4.2"),
    }
    for name, (value, point) in recomputed.items():
        assert (results[name].value, results[name].point) == (pytest.approx(value, abs=0.006), point)
    assert results["real.round_robin.preemption_loss"].value == pytest.approx(0.842, abs=5e-4)
    assert results["generated.infaas.preemption_loss"].value == pytest.approx(0.711, abs=5e-4)
    assert results["generated.infaas.preemption_loss_s"].value == pytest.approx(1.26, abs=5e-3)


def test_a_figure_without_claims_has_none() -> None:
    assert claims_of("fig99") == []


def test_every_claim_ranges_over_points_that_the_paper_has() -> None:
    paper = paper_points("fig11")
    for each in claims_of("fig11"):
        for row in each.rows:
            published = paper[(paper["row"] == row) & (paper["metric"] == each.metric)]
            assert set(each.series) <= {*published["series"]}


def test_the_report_shows_both_readings_the_point_and_the_verdict() -> None:
    paper = paper_points("fig11")
    without = paper[paper["series"] != "Round-Robin"].assign(replicate=0)
    results = [evaluate(each, without, paper) for each in claims_of("fig11")]
    text = to_text("Claims", ["a note"], results)
    lines = text.splitlines()
    assert lines[:3] == ["Claims", "", "a note"]
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 16
    assert len({len(line) for line in table}) == 1
    prefill_p99 = next(line for line in table if "34.4x" in line)
    assert "34.8x (ShareGPT @ 7)" in prefill_p99
    assert prefill_p99.endswith("not run    |")
    assert "10 reproduced, 0 partly, 0 not, 6 not run." in lines
    assert "5.40 s" in text

    content = json.loads(to_json("fig11", {"title": "Figure 11"}, results))
    assert [each["id"] for each in content["claims"]] == [each.id for each in claims_of("fig11")]
    by_id = {each["id"]: each for each in content["claims"]}
    assert by_id["real.round_robin.prefill_p99"]["value"] is None
    assert by_id["real.round_robin.prefill_p99"]["verdict"] == "not run"
    assert by_id["generated.infaas.prefill_p99"]["point"] == "L-L @ 3"
    assert by_id["generated.infaas.preemption_loss_s"]["readings"]["artifact's first claim file"] == 5.4


@pytest.mark.parametrize(
    ("kind", "unit", "expected", "measured", "verdict"),
    [
        (Kind.VALUE, "share", 0.08, 0.068, Verdict.REPRODUCED),
        (Kind.VALUE, "share", 0.007, 0.010, Verdict.PARTLY),
        (Kind.VALUE, "s", 50.0, 168.0, Verdict.NOT),
        (Kind.VALUE_UP_TO, "x", 3.8, 3.72, Verdict.REPRODUCED),
        (Kind.VALUE_UP_TO, "x", 1.7, 1.001, Verdict.NOT),  # 1x is no slow-down at all, although 1.7 / 1.001 < 2
        (Kind.AT_LEAST, "share", 0.5, 0.61, Verdict.REPRODUCED),
        (Kind.AT_LEAST, "share", 0.5, 0.47, Verdict.PARTLY),
        (Kind.AT_LEAST, "share", 0.5, 0.3, Verdict.NOT),
    ],
)
def test_values_of_one_series(kind: Kind, unit: str, expected: float, measured: float, verdict: Verdict) -> None:
    table = frame({("A", 1.0): ([9.0], [measured])})
    no_points = table.iloc[:0]
    result = evaluate(claim(kind, expected, unit=unit, baseline=""), table, no_points)
    assert (result.value, result.verdict, result.points, result.points_expected) == (measured, verdict, 1, 1)
    assert math.isnan(result.paper)
    assert result.paper_point == ""


def test_an_interval_that_reaches_below_the_bound_caps_at_least() -> None:
    table = frame({("A", 1.0): ([1.0, 1.0], [0.45, 0.65])})
    assert evaluate(claim(Kind.AT_LEAST, 0.5), table, table.iloc[:0]).verdict is Verdict.PARTLY


def test_up_to_takes_the_largest_value_at_least_the_smallest_and_value_the_mean() -> None:
    table, none = frame(TWO_POINTS), frame({})
    assert evaluate(claim(Kind.VALUE_UP_TO, 3.0, unit="s"), table, none).point == "B @ 2"
    assert evaluate(claim(Kind.AT_LEAST, 1.0, unit="s"), table, none).point == "A @ 1"
    assert evaluate(claim(Kind.VALUE, 2.5, unit="s"), table, none).value == 2.5


@pytest.mark.parametrize("figure", ["fig03", "fig04", "fig05", "fig12", "fig16"])
def test_a_record_of_a_claim_gives_back_its_row(figure: str) -> None:
    claims = claims_of(figure)
    assert claims
    none = frame({})
    results = [evaluate(each, none, none) for each in claims]
    records = json.loads(to_json(figure, {}, results))["claims"]
    assert [row_of_record(record)["verdict"] for record in records] == ["not run"] * len(claims)
    text = to_text("t", [], results)
    assert all(row_of_record(record)["claim"] in text and row_of_record(record)["paper"] in text for record in records)
