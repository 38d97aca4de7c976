"""Lines and tables for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runners import report
from runners.outcome import Outcome, State

SUMMARY = {
    "finished": 200,
    "rejected": 0,
    "migrations": 3,
    "request_latency_mean_s": 10.5,
    "request_latency_p50_s": 1.25,
    "request_latency_p99_s": 130.0,
    "decode_latency_mean_s": 0.0391,
}


@pytest.fixture
def done(tmp_path: Path) -> Outcome:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    return Outcome(state=State.DONE, settings={"trace": "m_m", "qps": "7.6"}, directory=str(tmp_path), wall_s=0.412)


def test_a_job_is_one_line(done: Outcome) -> None:
    assert report.line(done, ["trace", "qps"], "[17/80]") == "[17/80] trace=m_m qps=7.6  done  0.41 s"
    assert report.line(done, []) == "done  0.41 s"
    failed = Outcome(state=State.FAILED, settings={"qps": "1"}, message="RuntimeError: boom", wall_s=1)
    assert report.line(failed, ["trace", "qps"]) == "qps=1  failed  RuntimeError: boom"


def test_a_run_is_a_table_of_its_metrics(done: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    report.run_table(done)
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "request latency" in line).split()[-4:] == ["10.5", "1.25", "130", "s"]
    assert next(line for line in lines if "decode latency" in line).split()[-4:] == ["39.1", "-", "-", "ms"]
    assert lines[-1] == "200 requests finished, 3 migrations"


def test_a_sweep_is_counted_and_a_small_one_shown(done: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"jobs": 4, "excluded": 2, "varying": ["qps"]}
    failed = Outcome(state=State.FAILED, settings={"qps": "10"}, message="boom")
    report.sweep_table([failed, done], plan, wall_s=3.04)
    out = capsys.readouterr().out
    assert "7.6" in out
    heading, counts = out.splitlines()[-2:]
    assert heading.split("  ") != []
    assert counts.split() == ["1", "1", "2", "2", "3.0", "s"]
    for state in (State.DONE, State.FAILED, State.EXCLUDED, State.STOPPED):
        assert str(state) in heading


def test_a_large_sweep_is_only_counted(done: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    report.sweep_table([done] * 20, {"jobs": 20, "excluded": 0, "varying": ["qps"]}, wall_s=1.0)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_values_sort_as_numbers_before_words() -> None:
    assert sorted(["10", "9", "b", "a", "1.5"], key=report.natural) == ["1.5", "9", "10", "a", "b"]
