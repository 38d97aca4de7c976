"""`python -m runners.trace`, in this process: what it prints, what it draws, how it refuses."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from runners import trace as command

BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,230,1317,Conversation log\n"
    "40,GPT-4,417,276,693,API log\n"
    "118,GPT-4,0,0,0,API log\n"
)


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["trace"])
    (tmp_path / "burst.csv").write_text(BURST)


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_a_trace_of_the_paper_is_shown_beside_table_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["trace=m_m", "qps=7.4"]) == 0
    shown = capsys.readouterr().out
    measured, paper = (next(line for line in shown.splitlines() if line.startswith(word)) for word in ("prompt", "  T"))
    assert measured.split()[1:] == ["254", "32", "173", "1,288", "4,208", "6,144"]
    assert paper.split()[-5:] == ["256", "32", "173", "1,288", "4,208"]
    assert "poisson, qps=7.4" in shown
    assert is_png(Path("outputs/trace/m_m.png"))
    assert [path.name for path in Path("outputs/trace").iterdir()] == ["m_m.png"]


def test_a_file_is_shown_with_its_account_of_rows_and_its_own_times(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["trace=file", "trace.path=burst.csv"]) == 0
    shown = capsys.readouterr().out
    assert "burst.csv: 3 requests (BurstGPT CSV)" in shown
    assert "KDD'25 (CC-BY-4.0)" in shown
    assert "rows read 4 = kept 3 + dropped 1 (1 × no output token)" in shown
    assert "1 rows were stamped earlier" in shown
    assert hashlib.sha256(BURST.encode()).hexdigest() in shown
    assert next(line for line in shown.splitlines() if line.startswith("as recorded")).split()[2:4] == ["40.0", "0.05"]
    assert is_png(Path("outputs/trace/burst.png"))


def test_one_request_and_all_at_once_can_be_drawn() -> None:
    assert command.main(["trace=file", "trace.path=burst.csv", "num_requests=1", "arrivals=recorded", "qps=null"]) == 0
    assert command.main(["trace=sharegpt", "num_requests=20", "arrivals=burst"]) == 0
    assert is_png(Path("outputs/trace/burst.png"))
    assert is_png(Path("outputs/trace/sharegpt.png"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["trace=file"], 2, "trace.path is not set: type trace.path=FILE."),
        (["trace=file", "trace.path=none.csv"], 1, "There is no trace file none.csv: check trace.path."),
        (["trace=m_m", "qps=0"], 2, "qps must be a positive number of requests per second, got 0.0"),
        (["trace=nothing"], 2, "trace=nothing: no such option"),
        (["-m", "trace=m_m,s_s"], 2, "runners.trace shows one trace at a time: leave out -m."),
    ],
)
def test_wrong_use_gives_one_sentence(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(words) == code
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not Path("outputs").exists()
