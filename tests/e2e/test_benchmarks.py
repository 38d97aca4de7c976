"""Benchmarks as a user types them, on sizes that say nothing about speed."""

from __future__ import annotations

import gzip
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def cells(output: str) -> list[list[str]]:
    """The rows of a printed table below its headings."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line]


def test_scale_has_a_row_for_each_size_with_requests_in_proportion() -> None:
    done = bench("benchmarks.scale", "sizes=2,4", "requests=15")
    assert done.returncode == 0, done.stderr
    assert [row[:2] for row in cells(done.stdout)] == [["2", "30"], ["4", "60"]]
    assert "over that at 2" in done.stdout


def test_scheduling_has_a_row_for_each_size() -> None:
    done = bench("benchmarks.scheduling", "sizes=4,60", "seconds=1", "dispatch=least_requests")
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in cells(done.stdout)] == ["4", "60"]


def test_reading_counts_the_rows_of_all_runs() -> None:
    done = bench("benchmarks.reading", "runs=3", "requests=20")
    assert done.returncode == 0, done.stderr
    assert [row[3] for row in cells(done.stdout)] == ["3", "3", "60"]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="it takes torch, which vLLM brings along")
def test_carriers_have_a_row_for_each_size() -> None:
    done = bench("benchmarks.carriers", "mib=1,2", "repeats=2")
    assert done.returncode == 0, done.stderr
    names = [f"{carrier} {mib}" for carrier in ("inline", "shared_memory") for mib in (1, 2)]
    assert [" ".join(row[:2]) for row in cells(done.stdout)] == names
    assert all(float(row[5]) > 0 for row in cells(done.stdout))


@pytest.fixture
def workloads(tmp_path: Path) -> Path:
    """Both files of the comparison, ten requests each."""
    for name in ("mm_q42.csv.gz", "conv_q60.csv.gz"):
        with gzip.open(tmp_path / name, "wt") as rows:
            rows.write("arrived_at,num_prefill_tokens,num_decode_tokens\n")
            rows.writelines(f"{i / 10},20,3\n" for i in range(10))
    return tmp_path


def test_any_command_can_be_measured_beside_ours(workloads: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    command = f'(echo "$INSTANCES $KV_BLOCKS $MAX_NUM_SEQS $BLOCK_SIZE"; head -1 "$TRACE") >> {seen}'
    done = bench("benchmarks.peers", f"bench={workloads}", "runs=1", f"command={command}")
    assert done.returncode == 0, done.stderr
    names = [row[1] for row in cells(done.stdout)]
    assert names == ["ours, round robin", "ours, least requests", "ours, Llumnix", "command"] * 2
    columns = "arrived_at,num_prefill_tokens,num_decode_tokens"
    assert seen.read_text().splitlines() == ["16 851 128 16", columns, "16 6900 128 16", columns]


def test_a_command_that_fails_is_named_with_its_last_words(workloads: Path) -> None:
    done = bench("benchmarks.peers", f"bench={workloads}", "runs=1", "command=echo no GPU >&2; exit 3")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "'echo no GPU >&2; exit 3' ended with code 3: no GPU"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["benchmarks.scale", "sizes=16,x"], "sizes must be a whole number of at least 1, got 'x'."),
        (["benchmarks.scale", "rate=-1"], "rate must be a positive number, got '-1'."),
        (["benchmarks.scheduling", "dispatch=best"], "dispatch=best is not known"),
        (["benchmarks.reading", "runs=0"], "runs must be a whole number of at least 1, got '0'."),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], said: str) -> None:
    done = bench(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
