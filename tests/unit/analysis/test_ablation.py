"""The ablation's numbers from runs written by hand: pairs on the same arrivals, ratios, intervals, the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import plot
from analysis.figures import ablation
from analysis.points import aggregate

HALF = 63.53102  # of the interval of 2 and 12: t(0.975, 1) * 10 / 2


def run(
    series: str, value: float, *, repeat: int = 0, qps: float = 7.0, high: float = 0.0, **more: Any
) -> dict[str, Any]:
    return {
        "config.trace.label": "M-M",
        "config.scheduler.label": series,
        "high_priority_fraction": high,
        "qps": qps,
        "seed": 0,
        "repeat": repeat,
        "request_latency_mean_s": value,
        **more,
    }


def points(*runs: dict[str, Any]) -> pd.DataFrame:
    return aggregate(ablation.samples(pd.DataFrame(runs)))


def test_each_run_is_compared_with_full_llumnix_on_the_same_arrivals() -> None:
    found = points(
        run("Llumnix", 10.0), run("Llumnix", 20.0, repeat=1), run("Replay", 20.0), run("Replay", 240.0, repeat=1)
    ).set_index(["series", "metric"])
    ratio = found.loc[("Replay", "Request Mean / Llumnix")]
    assert ratio["value"] == pytest.approx(7.0)  # of 2 and 12, and not 130 / 15
    assert ratio["ci_high"] - ratio["value"] == pytest.approx(HALF)
    assert (ratio["unit"], ratio["n"]) == ("ratio", 2)
    assert found.loc[("Replay", "Request Mean"), "value"] == 130.0
    assert ("Llumnix", "Request Mean / Llumnix") not in found.index


def test_a_run_without_its_counterpart_is_not_compared() -> None:
    found = points(run("Llumnix", 10.0), run("Replay", 20.0, repeat=1), run("Replay", 30.0, qps=6.0))
    assert set(found["unit"]) == {"s"}


def test_priorities_make_a_row_of_their_own_with_metrics_by_class() -> None:
    classes = {"high_request_latency_mean_s": 4.0, "normal_request_latency_mean_s": 8.0}
    found = points(run("Llumnix", 10.0), run("Llumnix", 10.0, high=0.1, **classes))
    assert [*found["row"].unique()] == ["M-M", "M-M, 10 % high priority"]
    mixed = found[found["row"] != "M-M"]
    assert {*mixed["metric"]} == {"High: Request Mean", "Normal: Request Mean"}


def test_without_high_priority_requests_there_is_no_headroom_to_leave_out() -> None:
    found = points(run("Llumnix", 10.0), run("No headroom", 10.0), run("Replay", 10.0))
    assert {*found["series"]} == {"Llumnix", "Replay"}


def test_the_table_says_percent_and_from_three_times_on_the_ratio() -> None:
    text = ablation.report(
        points(run("Llumnix", 10.0), run("Replay", 12.5), run("Round-Robin", 47.0), run("Least KV", 9.0)), ["A note."]
    )
    assert "\nA note.\n" in text
    lines = [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines() if line.startswith("| ")]
    assert lines[1:] == [["Llumnix", "10 s"], ["Replay", "+25.0 %"], ["Least KV", "-10.0 %"], ["Round-Robin", "4.7x"]]


def test_the_table_has_intervals_where_there_are_repeats() -> None:
    runs = [run("Llumnix", 10.0, repeat=i) for i in range(2)] + [run("Replay", 11.0 + i, repeat=i) for i in range(2)]
    assert "+15.0 % [-48.5, +78.5]" in ablation.report(points(*runs), [])


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_figure_has_a_panel_per_row_and_metric_with_one_at_the_ratio(repeats: int) -> None:
    classes = {"high_request_latency_mean_s": 4.0}
    runs = [
        run(series, value, repeat=i, high=high, **classes)
        for series, value in (("Llumnix", 10.0), ("Replay", 12.5), ("Least KV", 9.0))
        for i in range(repeats)
        for high in (0.0, 0.1)
    ]
    figure = ablation.draw(points(*runs), pd.DataFrame(), {"M-M"})
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2 * len(ablation.PLAIN)
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["Replay", "Least KV"]
    assert sorted(first.lines[0].get_xdata()) == [0.9, 1.25]
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["7 requests/s"] + ["95 % interval of the mean (2 runs)"] * (repeats > 1)


def test_plot_knows_it_and_says_how_to_make_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        plot.main(["fig=ablation", f"outputs={tmp_path}"])
    assert stopped.value.code == 2
    assert "python -m runners.serve experiment=ablation" in capsys.readouterr().err
