"""Figures 13, 14 and 15 from rows of runs: the paper's points come back as they are, and the readings of a saving."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest

from analysis import style
from analysis.claims.claim import Verdict, claims_of
from analysis.claims.evaluate import evaluate
from analysis.figures import fig13, fig14, fig15
from analysis.points import KEY, aggregate, paper_points


def run(series: str, **columns: Any) -> dict[str, Any]:
    return {"config.scheduler.label": series, "seed": 0, "repeat": 0, **columns}


def runs_of(figure: str) -> pd.DataFrame:
    """Runs whose summaries are the paper's points of a figure."""
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    for point in paper_points(figure).to_dict("records"):
        row, series, x, metric = (point[key] for key in ("row", "series", "x", "metric"))
        if figure == "fig13":
            one = rows.setdefault((series, x), run(series, cv=x, qps=26.0, arrivals="gamma"))
            key = fig13.CLASSES[row] + fig13.METRICS[metric]
        elif figure == "fig14":
            where = {"qps": x, "cv": 1.0} if row == "Poisson" else {"qps": 2.0, "cv": x}
            one = rows.setdefault((row, series, x), run(series, arrivals=row.lower(), **where))
            key = fig14.METRICS[metric]
        else:
            one = rows.setdefault((series, x), run(series, **{f"config.{fig15.LOW}": x}))
            key = fig15.KEYS[metric][0]
        one[key] = point["value"]
    return pd.DataFrame(list(rows.values()))


MODULES = {"fig13": fig13, "fig14": fig14, "fig15": fig15}


@pytest.mark.parametrize("figure", MODULES)
def test_runs_that_measure_the_papers_points_are_its_points(figure: str) -> None:
    samples = MODULES[figure].samples(runs_of(figure))
    joined = samples.merge(paper_points(figure), on=KEY, suffixes=("", "_paper"), validate="one_to_one")
    assert len(joined) == len(paper_points(figure))
    assert joined["value"].tolist() == joined["value_paper"].tolist()
    assert joined["unit"].tolist() == joined["unit_paper"].tolist()


@pytest.mark.parametrize("figure", MODULES)
def test_the_papers_own_points_bear_its_claims_out(figure: str) -> None:
    """But for the two of Figure 13 that its points exceed by rounding, and the saving at one and the same P99."""
    module, paper = MODULES[figure], paper_points(figure)
    samples = module.samples(runs_of(figure))
    verdicts = {c.id: evaluate(c, samples, paper).verdict for c in claims_of(figure)}
    partly = {claim for claim, verdict in verdicts.items() if verdict is Verdict.PARTLY}
    exceeded = {"normal.request_mean", "normal.prefill_mean", "normal.decode_mean"}
    assert partly == {"fig13": exceeded, "fig14": set(), "fig15": {"saving_at_equal_p99"}}[figure]
    over_time = {claim for claim, verdict in verdicts.items() if verdict is Verdict.NOT_RUN}
    assert all(claim.endswith("over_time") for claim in over_time)
    assert Verdict.NOT not in verdicts.values()


@pytest.mark.parametrize(("figure", "panels"), [("fig13", 14), ("fig14", 14), ("fig15", 1)])
def test_figures_have_the_papers_panels(figure: str, panels: int) -> None:
    module, paper = MODULES[figure], paper_points(figure)
    with mpl.rc_context(style.SETTINGS):
        drawn = module.draw(aggregate(module.samples(runs_of(figure))), paper, set())
        assert len(drawn.axes) == panels
        assert len(module.draw(aggregate(module.samples(runs_of(figure)).iloc[:0]), paper, set()).axes) == panels
    if figure == "fig14":
        assert [ax.get_xlabel() for ax in (drawn.axes[0], drawn.axes[7])] == list(fig14.LAYOUT.rows.values())
        assert drawn.axes[6].get_ylabel() == drawn.axes[13].get_ylabel() == "Instances"
    if figure == "fig13":
        assert drawn.axes[0].get_xlabel() == ""


def test_the_readings_of_the_saving_are_those_worked_out_from_the_papers_points() -> None:
    samples = fig15.samples(runs_of("fig15")).set_index("metric")["value"]
    assert samples[fig15.AS_LABELLED] == pytest.approx(14.25 / 10.44 - 1)
    assert samples[fig15.SAVING] == pytest.approx(0.208, abs=0.0005)


def test_a_saving_takes_both_series_and_a_level_that_they_reach() -> None:
    every = runs_of("fig15")
    alone = fig15.samples(every[every["config.scheduler.label"] == "Llumnix"])
    assert set(alone["metric"]) == set(fig15.KEYS)
    high = every.assign(prefill_latency_p99_s=every["prefill_latency_p99_s"] + 10)
    assert set(fig15.samples(high)["metric"]) == {*fig15.KEYS, fig15.AS_LABELLED}


def test_the_cost_of_a_level_lies_on_the_line_between_two_points() -> None:
    curve = pd.DataFrame({fig15.COST: [12.0, 10.0, 11.0], fig15.TAIL: [2.0, 8.0, 4.0]})
    assert fig15.cost_at(curve, 5.0) == pytest.approx(10.75)
    assert fig15.cost_at(curve, 8.0) == 10.0
    assert fig15.cost_at(curve, 1.0) is None
