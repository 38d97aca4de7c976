"""Figure 11 from run directories: which files, which numbers, which panels; and what is said where runs are missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import load, panels, plot, style
from analysis.figures import fig11
from analysis.points import KEY, aggregate, paper_points

MakeRuns = Callable[..., None]
ALL = ["Llumnix", "INFaaS++", "Round-Robin"]


@pytest.fixture(scope="module", autouse=True)
def coarse() -> Any:
    """Draw at a low resolution: tests look at numbers and structure, not at pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 30)
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the drawing, which takes most of the time."""
    monkeypatch.setattr(fig11, "draw", lambda *_: None)
    monkeypatch.setattr(plot, "_render", lambda *_: b"")


def test_plot_writes_all_files_and_names_what_is_missing(
    paper_runs: MakeRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fig11, "draw", lambda *_: Figure(figsize=(1, 1)))  # 49 panels take seconds; see `grid`
    paper_runs(["M-M", "ShareGPT"], ["Llumnix", "INFaaS++"], repeats=2)
    plot.main(["fig=all", f"outputs={tmp_path}"])
    folder = tmp_path / "fig11" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == [
        "fig11.claim",
        "fig11.claim.json",
        "fig11.csv",
        "fig11.pdf",
        "fig11.png",
    ]
    assert (folder / "fig11.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "fig11.pdf").read_bytes().startswith(b"%PDF")
    printed = capsys.readouterr().out
    assert "Missing on ShareGPT: Round-Robin.\n" in printed
    assert "Missing on L-S: INFaaS++; Llumnix.\n" in printed
    assert "Missing on M-M" not in printed
    assert "Synthetic lengths, shaped after Table 1 and not the data set's: ShareGPT." in printed
    assert any(line.startswith(str(folder / "fig11")) for line in printed.splitlines())
    assert printed.splitlines()[-1] == str(tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    assert "Figure 11 (§6.3): serving performance" in page
    assert "python -m runners.serve experiment=fig11 repeat=0,1" in page
    assert page.count("data:image/png;base64,") == 1
    assert "://" not in page  # of any scheme; the text of a picture may say http by chance, but has no colon
    assert page.count("<tr>") == 1 + 16
    assert '<span class="verdict not-run">not run</span>' in page

    csv = pd.read_csv(folder / "fig11.csv")
    joined = csv.merge(paper_points("fig11"), on=KEY, suffixes=("", "_paper"), validate="one_to_one")
    assert len(joined) == len(csv) == 2 * 2 * 5 * 7
    assert set(joined["n"]) == {2}
    np.testing.assert_allclose(joined["value"], joined["value_paper"] * 1.005, rtol=1e-6)

    claims = {each["id"]: each for each in json.loads((folder / "fig11.claim.json").read_text())["claims"]}
    assert claims["real.round_robin.prefill_p99"]["verdict"] == "not run"
    prefill = claims["generated.infaas.prefill_mean"]
    assert (prefill["point"], prefill["points"], prefill["verdict"]) == ("M-M @ 7.8", 5, "partly")
    assert prefill["value"] == pytest.approx(7.74, abs=0.01)


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_the_same_points_give_the_same_bytes(kind: str) -> None:
    def render() -> bytes:
        paper = paper_points("fig11").query("row == 'M-M' and metric == 'Prefill P99'")
        figure = Figure(figsize=(3, 2))
        panels.draw(figure.subplots(), aggregate(paper.assign(replicate=0)), paper, ["not run: nothing"])
        return plot._render(figure, kind)

    with mpl.rc_context(style.SETTINGS):
        first = render()
        assert render() == first
    assert b"Date" not in first
    assert b"Type3" not in first


@pytest.fixture(scope="module")
def grid() -> Figure:
    """The figure of the paper's own points, two runs each, without Round-Robin on BurstGPT, all L-S and one rate."""
    paper = paper_points("fig11")
    absent = (paper["series"] == "Round-Robin") & (paper["row"] == "BurstGPT") | (paper["row"] == "L-S")
    absent |= (paper["series"] == "Llumnix") & (paper["x"] == 8.5)
    samples = pd.concat([paper[~absent].assign(replicate=replicate) for replicate in (0, 1)])
    with mpl.rc_context(style.SETTINGS):
        return fig11.draw(aggregate(samples), paper, {"ShareGPT"})


def test_the_grid_has_the_papers_panels(grid: Figure) -> None:
    axes = np.array(grid.axes).reshape(7, 7)
    assert [ax.get_title() for ax in axes[0]] == list(fig11.METRICS)
    names = [[text.get_text() for text in ax.texts][-2:] for ax in axes[:, 0]]
    assert names == [["ShareGPT", "synthetic lengths"], *[[row, ""] for row in fig11.ROWS[1:]]]
    assert all("Request rate" in ax.get_xlabel() for ax in axes[-1])
    lines = [line for line in axes[2, 0].lines if len(line.get_xdata())]
    ours = next(line for line in lines if line.get_color() == style.SERIES["Llumnix"].colour and line.get_ls() == "-")
    assert list(ours.get_xdata()) == [32, 33, 34, 35, 36]
    hollow = [line for line in lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 2
    legend = [text.get_text() for text in grid.legends[0].get_texts()]
    assert legend == [*ALL, "95 % interval of the mean (2 runs)", "paper (hollow markers)"]
    for ax in axes.flat:
        low, high = ax.get_ylim()
        assert low < 0 < high


def test_missing_series_are_named_in_their_panels_and_still_show_the_papers_points(grid: Figure) -> None:
    axes = np.array(grid.axes).reshape(7, 7)
    assert axes[1, 3].texts[0].get_text() == "not run: Round-Robin\nLlumnix not at 8.5"
    assert axes[6, 6].texts[0].get_text() == "not run: INFaaS++, Llumnix"
    assert any(line.get_markerfacecolor() == "none" and len(line.get_xdata()) == 5 for line in axes[6, 6].lines)
    assert not axes[2, 3].texts


def test_the_legend_promises_no_interval_where_there_is_none() -> None:
    labels = [handle.get_label() for handle in panels.legend_handles(["Llumnix"], "")]
    assert labels == ["Llumnix", "paper (hollow markers)"]


def test_runs_of_other_traces_and_without_results_are_no_points(
    make_run: Callable[..., Path], paper_runs: MakeRuns, tmp_path: Path
) -> None:
    paper_runs(["S-S"], ["Llumnix"])
    make_run("My trace", summary=dict.fromkeys(fig11.METRICS.values(), 1.0))
    make_run("S-S", qps=99.0, summary={"request_latency_mean_s": 1.0})  # nothing else: no request got further
    samples = fig11.samples(load.runs(tmp_path))
    assert set(samples["row"]) == {"S-S"}
    assert samples[samples["x"] == 99.0]["metric"].tolist() == ["Request Mean"]
    assert samples["metric"].drop_duplicates().tolist() == list(fig11.METRICS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fig=11"], "python -m runners.serve experiment=fig11"),
        (["fig=all"], "python -m runners.serve experiment=fig03"),
        (["fig=3"], "python -m runners.serve experiment=fig03"),
        (["fig=03"], "python -m runners.serve experiment=fig03"),
        (["fig=11", "num_requests=200"], "python -m runners.serve experiment=fig11 num_requests=200"),
        (["fig=99"], "fig=11"),
        ([], "fig=11"),
        (["figure=11"], "fig"),
        (["11"], "key=value"),
        (["fig="], "key=value"),
    ],
)
def test_usage_errors_are_one_sentence_and_exit_2(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        plot.main([*words, f"outputs={tmp_path}"])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert len(printed.err.strip().splitlines()) == 1


@pytest.mark.usefixtures("undrawn")
def test_failed_runs_do_not_enter_and_are_pointed_out(
    make_run: Callable[..., Path], paper_runs: MakeRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper_runs(["L-S"], ["Llumnix"])
    make_run("L-S", "INFaaS++", 10, failure="killed")
    plot.main(["fig=11", f"outputs={tmp_path}"])
    printed = capsys.readouterr().out
    assert "1 runs failed: python -m analysis.runs experiment=fig11 state=failed" in printed
    assert "Missing on L-S: INFaaS++." in printed


@pytest.mark.usefixtures("undrawn")
def test_unwritable_outputs_are_one_sentence(
    paper_runs: MakeRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper_runs(["L-S"], ["Llumnix"])
    (tmp_path / "fig11" / "figures").write_text("a file where the folder should be")
    with pytest.raises(SystemExit) as stop:
        plot.main(["fig=11", f"outputs={tmp_path}"])
    assert stop.value.code == 2
    assert "Cannot write to" in capsys.readouterr().err
