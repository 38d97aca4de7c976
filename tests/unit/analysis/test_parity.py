"""The comparison with the paper: errors, allowance, thresholds, shares and exit codes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.points import paper_points
from benchmarks import parity


def scaled(factor: float, **of_metric: float) -> pd.DataFrame:
    """The paper's own points as if simulated, all multiplied; keywords give metrics (with _) their own factor."""
    paper = paper_points("fig11")
    factors = paper["metric"].map({name.replace("_", " "): value for name, value in of_metric.items()}).fillna(factor)
    return paper.assign(value=paper["value"] * factors)


def compared(points: pd.DataFrame) -> pd.DataFrame:
    return parity.compare(points, paper_points("fig11"))


def test_the_paper_is_on_par_with_itself() -> None:
    result = compared(scaled(1.0))
    assert result["error"].tolist() == [0.0] * 560
    assert parity.missed(result, "fig11") == []
    assert parity.shares(result, [1.1]) == {1.1: 1.0}
    assert parity.disordered(result, "Llumnix", "INFaaS++", ["Request Mean"]).empty


def test_error_is_symmetric_and_signed_ratio_is_kept() -> None:
    for factor, sign in ((2.0, 1), (0.5, -1)):
        summary = parity.summarize(compared(scaled(factor)), ["metric"])
        assert summary.loc["Request Mean", "median"] == pytest.approx(math.log(2))
        assert summary.loc["Request Mean", "p90"] == pytest.approx(math.log(2))
        assert summary.loc["Request Mean", "signed"] == pytest.approx(sign * math.log(2))
        assert summary.loc["Request Mean", "points"] == 80


def test_a_preemption_loss_within_a_tenth_of_a_second_has_no_error() -> None:
    paper = paper_points("fig11").query("metric == 'Preemption Loss'").head(3)
    ours = paper.assign(value=paper["value"] + [0.0999, -0.1001, 5.0])
    errors = parity.compare(ours, paper)["error"]
    assert errors.iloc[0] == 0.0
    assert errors.iloc[1] > 0.0
    assert errors.iloc[2] > math.log(2)
    other = paper_points("fig11").query("metric == 'Decode Mean'").head(1)
    assert parity.compare(other.assign(value=other["value"] + 0.09), other)["error"].iloc[0] > 0.0


def test_a_simulated_loss_of_zero_is_an_infinite_error_where_the_paper_has_a_large_one() -> None:
    result = compared(scaled(1.0, Preemption_Loss=0.0))
    assert np.isinf(result["error"]).any()
    assert parity.shares(result, [2.0])[2.0] < 1.0


def test_thresholds_are_met_just_below_and_missed_just_above() -> None:
    assert parity.missed(compared(scaled(1.039)), "fig11") == []
    found = parity.missed(compared(scaled(1.041)), "fig11")
    assert [sentence.split(":")[0] for sentence in found] == ["Request Mean", "Decode Mean"]
    assert parity.missed(compared(scaled(1.0, Prefill_P99=1.29)), "fig11") == []
    (sentence,) = parity.missed(compared(scaled(1.0, Prefill_P99=1.31)), "fig11")
    assert sentence.startswith("Prefill P99: median 0.270 exceeds ln(1.3) = 0.262")


def test_a_bad_tail_misses_the_90th_percentile_only() -> None:
    points = scaled(1.0)
    tail = points.index[points["metric"] == "Request P99"][:12]
    points.loc[tail, "value"] *= 1.5
    (sentence,) = parity.missed(compared(points), "fig11")
    assert sentence.startswith("Request P99: p90")


def test_points_that_were_not_simulated_miss_the_shares_and_are_counted() -> None:
    points = scaled(1.0)
    result = compared(points[points["row"] != "L-L"])
    assert parity.shares(result, [2.0])[2.0] == pytest.approx(490 / 560)
    found = parity.missed(result, "fig11")
    assert "70 of 560 published points were not simulated." in found
    assert any("must be" in sentence for sentence in found)


def test_swapped_order_is_found_only_where_the_paper_is_clear() -> None:
    points = scaled(1.0)
    best = (points["series"] == "Llumnix") & (points["metric"] == "Request Mean")
    points.loc[best, "value"] *= 2
    swapped = parity.disordered(compared(points), "Llumnix", "INFaaS++", ["Request Mean"])
    assert ("S-L", "Request Mean", 4.3) in swapped.index
    assert ("L-S", "Request Mean", 12.0) not in swapped.index  # equal in the paper


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    scaled(1.01).to_csv(good, index=False)
    scaled(3.0).to_csv(bad, index=False)
    assert parity.main([f"csv={good}"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("All thresholds are met.")
    assert parity.main([f"csv={bad}", "rows=S-S,M-M", "worst=2"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL" in printed
    assert "all 140 points" in printed
    for words in (["csv=none.csv"], [f"csv={good}", "rows=X"], ["fig=99"], [f"csv={good}", "worst=many"], ["x=1"]):
        with pytest.raises(SystemExit) as stop:
            parity.main(words)
        assert stop.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_of_figure_13_the_ratios_of_the_series_are_judged() -> None:
    paper = paper_points("fig13")
    theirs = parity.ratios(paper, *parity.RATIOS["fig13"])
    assert len(theirs) == 7 * 4
    assert set(theirs["series"]) == {"Llumnix-base / Llumnix"}
    at = theirs[(theirs["metric"] == "Request Mean") & (theirs["x"] == 8.0)]
    assert at["value"].item() == pytest.approx(8.5357 / 5.6842)
    both_slower = parity.ratios(paper.assign(value=paper["value"] * 1.5), *parity.RATIOS["fig13"])
    assert parity.missed(parity.compare(both_slower, theirs), "fig13") == []
    one = paper.assign(value=paper["value"].mask((paper["series"] == "Llumnix") & (paper["x"] == 8.0), 1.0))
    found = parity.missed(parity.compare(parity.ratios(one, *parity.RATIOS["fig13"]), theirs), "fig13")
    assert [sentence.split(" ")[:3] for sentence in found] == [
        ["Request", "Mean:", "worst"],
        ["Decode", "Mean:", "worst"],
    ]


@pytest.mark.parametrize(
    ("figure", "metric", "median", "worst"),
    [
        ("fig10", "Downtime", None, 1.15),
        ("fig10", "Decode Latency", None, 1.15),
        ("fig14", "Request Mean", 1.03, 1.08),
        ("fig14", "Resource Cost", 1.04, 1.07),
        ("fig15", "Resource Cost", None, 1.05),
    ],
)
def test_limits_of_the_median_and_of_every_point(figure: str, metric: str, median: float | None, worst: float) -> None:
    paper = paper_points(figure)
    here = paper["metric"] == metric

    def found(factor: float, of_points: int) -> list[str]:
        chosen = paper.index[here][:of_points]
        points = paper.assign(value=paper["value"].where(~paper.index.isin(chosen), paper["value"] * factor))
        return parity.missed(parity.compare(points, paper), figure)

    assert found(worst - 0.001, 1) == []
    [sentence] = found(worst + 0.001, 1)
    assert sentence.startswith(f"{metric}: worst")
    if median is not None:
        assert found(median - 0.001, 99) == []
        [sentence] = found(median + 0.001, 99)
        assert sentence.startswith(f"{metric}: median")


@pytest.mark.parametrize("figure", ["10", "13", "14", "15"])
def test_the_other_figures_are_compared_from_the_command_line(
    figure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "points.csv"
    paper_points(f"fig{figure}").to_csv(csv, index=False)
    assert parity.main([f"fig={figure}", f"csv={csv}", "worst=1"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("All thresholds are met.")
