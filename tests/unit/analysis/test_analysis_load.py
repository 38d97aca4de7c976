"""Reading run directories: whole ones, broken ones, and those of several settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis import load, runs, select

MakeRun = Callable[..., Path]


def test_a_finished_run_is_one_row_of_config_and_results(make_run: MakeRun, tmp_path: Path) -> None:
    directory = make_run("S-L", "INFaaS++", 4.2, {"request_latency_mean_s": 36.3}, repeat=2, synthetic=True)
    (row,) = load.runs(tmp_path).to_dict("records")
    assert (row["experiment"], row["run_id"], row["state"]) == ("fig11", directory.name, "done")
    assert (row["trace"], row["scheduler"], row["model"], row["engine"]) == ("s_l", "infaas", "llama_7b", "sim")
    assert (row["qps"], row["repeat"], row["num_requests"]) == (4.2, 2, 10_000)
    assert row["config.trace.label"] == "S-L"
    assert row["config.gpu.costs.llama_7b.decode_ms"] == 31.0
    assert row["config.trace.paper_qps"] == (1, 2)
    assert row["workload.synthetic"] is True
    assert (row["commit"], row["dirty"]) == ("c0ffee", False)
    assert row["request_latency_mean_s"] == 36.3


def test_states_of_broken_and_partial_runs(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(summary={})
    make_run(failure="MemoryError: no room")
    make_run()
    (make_run(summary={}) / "run.json").write_text('{"config": {"qps"')
    (make_run() / "summary.json").write_text("[1, 2]")
    (make_run(summary={}) / "run.json").unlink()
    make_run(summary={}, schema_version=99)
    (tmp_path / "fig11" / "runs" / "stray.txt").write_text("no directory")
    (tmp_path / "fig11" / "runs" / "empty").mkdir()
    (tmp_path / "fig11" / "runs" / ".new.part").mkdir()
    (tmp_path / "fig11" / "runs" / ".run0000.part").mkdir()  # being done again
    frame = load.runs(tmp_path).set_index("run_id")
    assert frame["state"].to_dict() == {
        "empty": "unfinished",
        "new": "unfinished",
        "run0000": "done",
        "run0001": "failed",
        "run0002": "unfinished",
        "run0003": "unfinished",
        "run0004": "unfinished",
        "run0005": "unfinished",
        "run0006": "unfinished",
    }
    reasons = frame["reason"]
    assert reasons["run0001"] == "MemoryError: no room"
    assert "interrupted" in reasons["run0002"]
    assert "run.json is not JSON" in reasons["run0003"]
    assert "summary.json holds a list" in reasons["run0004"]
    assert reasons["run0005"] == "no run.json"
    assert "schema version 99" in reasons["run0006"]


def test_a_rerun_that_succeeded_is_done_although_its_old_failure_is_still_there(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run(summary={}, failure="the first try")
    assert load.runs(tmp_path)["state"].tolist() == ["done"]


def test_no_runs_is_an_empty_frame(tmp_path: Path) -> None:
    frame = load.runs(tmp_path / "nowhere")
    assert frame.empty
    assert load.matching(frame[frame["state"] == "done"], {"qps": "7"}).empty


def test_matching_compares_numbers_as_numbers_and_lists_as_alternatives(make_run: MakeRun, tmp_path: Path) -> None:
    for qps in (7.0, 7.5, 8.0):
        make_run(qps=qps, summary={})
    frame = load.runs(tmp_path)
    assert load.matching(frame, {"qps": "7,8.00"})["qps"].tolist() == [7.0, 8.0]
    assert load.matching(frame, {"qps": "7", "trace": "m_m"})["qps"].tolist() == [7.0]
    assert load.matching(frame, {"trace": "l_l"}).empty
    assert load.matching(frame, {"no_such_column": "1"}).empty


def test_requests_reads_only_the_columns_asked_for(make_run: MakeRun) -> None:
    directories = [make_run(summary={}) for _ in range(2)]
    for directory in directories:
        pd.DataFrame({"arrival_s": [0.0, 1.0], "end_s": [2.0, 3.0]}).to_parquet(directory / "requests.parquet")
    rows = load.requests(directories, ["end_s"])
    assert rows.columns.tolist() == ["run_id", "end_s"]
    assert rows["run_id"].tolist() == ["run0000", "run0000", "run0001", "run0001"]
    assert load.requests([], ["end_s"]).columns.tolist() == ["run_id", "end_s"]


def test_a_run_is_read_in_milliseconds(make_run: MakeRun, tmp_path: Path) -> None:
    for repeat in range(200):
        make_run(summary={"request_latency_mean_s": 1.0}, repeat=repeat)
    begin = time.process_time()
    assert len(load.runs(tmp_path)) == 200
    assert time.process_time() - begin < 200 * 5e-3


def test_runs_of_one_setting_are_all_kept(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("M-M", scheduler="Llumnix", summary={}, repeat=0, force=True)
    make_run("L-L", scheduler="INFaaS++", summary={}, repeat=1, seed=3, exclude=[{"trace": "s_s"}])
    kept, notes = select.of_one_setting(load.runs(tmp_path))
    assert len(kept) == 2
    assert notes == []


def test_a_small_trial_does_not_mix_with_the_full_runs(make_run: MakeRun, tmp_path: Path) -> None:
    for qps in (7.0, 7.5, 8.0):
        make_run(qps=qps, summary={}, num_requests=200, started_at="2026-02-01T00:00:00")
    make_run(qps=7.0, summary={})
    kept, notes = select.of_one_setting(load.runs(tmp_path))
    assert kept["num_requests"].tolist() == [10_000]
    assert notes == ["left out 3 runs with other settings than num_requests=10000."]


def test_of_equally_large_sets_the_latest_is_kept(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(summary={}, gpu={"name": "a10", "costs": {"a": 1}}, started_at="2026-02-01T00:00:00")
    make_run(summary={}, gpu={"name": "a10", "costs": {"a": 2}}, started_at="2026-03-01T00:00:00")
    kept, notes = select.of_one_setting(load.runs(tmp_path))
    assert kept["config.gpu.costs.a"].tolist() == [2]
    assert notes[0].endswith("than gpu.costs.a=2.")


def test_settings_of_a_scheduler_may_differ_between_traces_but_not_within_one(
    make_run: MakeRun, tmp_path: Path
) -> None:
    def override(trace: str, threshold: int) -> None:
        scheduler = {"name": "llumnix", "label": "Llumnix", "threshold": threshold}
        make_run(trace, summary={}, started_at=f"2026-01-{threshold:02d}", groups={"scheduler": scheduler})

    override("M-M", 10)
    override("L-L", 3)
    kept, notes = select.of_one_setting(load.runs(tmp_path))
    assert (len(kept), notes) == (2, [])
    override("L-L", 4)
    kept, notes = select.of_one_setting(load.runs(tmp_path))
    assert sorted(kept["config.scheduler.threshold"]) == [4, 10]
    assert "l_l poisson llumnix: left out 1 runs" in notes[0]


@pytest.mark.parametrize("words", [["state=broken"], ["experiment=none"], ["qps=99"], ["sheduler=llumnix"], ["hello"]])
def test_the_list_of_runs_says_in_one_line_what_is_wrong(
    words: list[str], make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(summary={})
    with pytest.raises(SystemExit) as stop:
        runs.main([f"outputs={tmp_path}", *words])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1


def test_the_list_of_runs_shows_state_reason_and_headlines(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("M-M", "Llumnix", 7.5, {"request_latency_mean_s": 14.25, "migrations": 501, "rejected": 0})
    make_run("M-M", "INFaaS++", 7.5, failure="OSError: [disk] is full", repeat=1)
    runs.main([f"outputs={tmp_path}"])
    printed = capsys.readouterr().out
    done = next(line for line in printed.splitlines() if "run0000" in line)
    assert {"m_m", "llumnix", "7.5", "done", "14.25", "501"} <= set(done.split())
    failed = next(line for line in printed.splitlines() if "run0001" in line)
    assert "failed" in failed
    assert "OSError: [disk] is full" in failed
    assert "rejected" not in printed  # nothing was: no column for it
    assert printed.splitlines()[-1] == "2 runs: 1 done, 1 failed"


def test_a_run_without_a_table_that_a_figure_needs_ends_the_program_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        load.table(tmp_path, "steps")
    assert "has no steps.parquet, which engine.record_steps=true writes" in " ".join(capsys.readouterr().err.split())
