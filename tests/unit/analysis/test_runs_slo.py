"""`python -m analysis.runs slo.ttft_s=...` judges runs that are there, whatever they were asked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis import runs


def test_runs_are_judged_from_their_requests(
    make_run: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory: Path = make_run(summary={"slo_attainment": 0.123, "finished": 4})  # type: ignore[operator]
    make_run(scheduler="INFaaS++", failure="boom")  # type: ignore[operator]
    columns = {
        "arrival_s": [0.0, 0.0, 0.0, 0.0],
        "sent_s": [0.0, 0.0, 0.0, 0.0],
        "first_token_s": [1.0, 2.0, 3.0, 9.0],
        "end_s": [5.0, 5.0, 5.0, 10.0],
        "output_tokens": [2, 2, 2, 2],
        "status": ["finished"] * 4,
    }
    pd.DataFrame(columns).to_parquet(directory / "requests.parquet")
    runs.main([f"outputs={tmp_path}", "slo.ttft_s=3"])
    shown = capsys.readouterr().out
    done = next(line for line in shown.splitlines() if "llumnix" in line)
    assert "0.75" in done.split()  # three of four
    assert "0.3" in done.split()  # in ten seconds
    assert "0.123" not in shown
    assert "boom" in shown


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("slo.ttft_s=soon", "slo.ttft_s=soon: limits are numbers"),
        ("slo.tpot_s=0", "slo.tpot_s must be a positive number"),
    ],
)
def test_limits_that_are_none_are_one_sentence(
    word: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        runs.main([f"outputs={tmp_path}", word])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
