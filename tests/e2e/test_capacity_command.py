"""`python -m runners.capacity` as a person uses it, on few requests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Loaded by every Python process that has its directory on PYTHONPATH.
FAULTS = """
import llumnix.workload as workload
real = workload.build
def build(trace, arrivals, *, qps, **rest):
    if qps == 66:
        raise RuntimeError("boom")
    return real(trace, arrivals, qps=qps, **rest)
workload.build = build
"""
Capacity = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def capacity(tmp_path: Path) -> Capacity:
    """Run the command in an empty directory, on a small cluster that few requests can fill."""
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(FAULTS)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'faults'}{os.pathsep}{ROOT}"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        small = ["num_requests=150", "trace.max_tokens=600", "cluster.kv_blocks=80"]
        command = [sys.executable, "-m", "runners.capacity", *small, *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    return run


def probes(output: str) -> dict[float, bool]:
    """What was probed, and whether it held."""
    lines = re.findall(r"(?:qps|cluster\.instances)=([\d.]+)  .*  (holds|does not hold)  ", output)
    return {float(number): verdict == "holds" for number, verdict in lines}


RATE = ("cluster.instances=2", "qps=1", "step=0.1", "slo.ttft_p99_s=15", "scheduler=llumnix,round_robin")


def test_the_highest_rate_lies_between_one_that_holds_and_the_next_that_does_not(
    capacity: Capacity, tmp_path: Path
) -> None:
    done = capacity(*RATE)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "outputs/capacity/runs"
    rows = {line.split()[0]: line.split() for line in lines if not line.startswith("[")}
    for place, scheduler in enumerate(("llumnix", "round_robin"), start=1):
        probed = probes("\n".join(line for line in lines if line.startswith(f"[{place}/2] scheduler={scheduler} ")))
        highest = float(rows[scheduler][1])
        assert probed[highest]
        assert not probed[round(highest + 0.1, 9)]
    runs = [json.loads(path.read_text()) for path in (tmp_path / "outputs/capacity/runs").glob("*/run.json")]
    assert {run["config"]["scheduler"]["name"] for run in runs} == {"llumnix", "round_robin"}
    assert {round(run["config"]["qps"] % 0.1, 9) for run in runs} <= {0.0, 0.1}
    assert not any("slo" in run["config"] for run in runs)  # other limits find the same runs


def test_probes_are_not_run_again_for_the_same_or_another_limit(capacity: Capacity, tmp_path: Path) -> None:
    first = capacity(*RATE)
    made = len(list((tmp_path / "outputs/capacity/runs").iterdir()))
    again = capacity(*RATE)
    assert probes(again.stdout) == probes(first.stdout)
    assert again.stdout.count("done already") == made == len(re.findall(r"holds?  ", first.stdout))
    other = capacity(*RATE, "slo.tpot_mean_s=9")
    assert probes(other.stdout) == probes(first.stdout)
    assert len(list((tmp_path / "outputs/capacity/runs").iterdir())) == made


def test_the_fewest_instances_are_one_more_than_the_most_that_do_not_do(capacity: Capacity) -> None:
    done = capacity(
        "find=instances", "qps=12", "cluster.instances=2", "slo.ttft_s=2", "slo.attainment=0.9", "repeats=2"
    )
    assert done.returncode == 0, done.stderr
    fewest = int(done.stdout.splitlines()[-2].split()[0])
    probed = probes(done.stdout)
    assert fewest > 1
    assert probed[fewest]
    assert not probed[fewest - 1]
    assert "slo_attainment" in done.stdout


def test_a_limit_that_never_holds_or_always_does_is_said(capacity: Capacity) -> None:
    never = capacity("cluster.instances=1", "qps=2", "step=1", "slo.ttft_mean_s=0.0001")
    assert (never.returncode, never.stdout.splitlines()[-2].split()[0]) == (0, "none")
    always = capacity("cluster.instances=1", "qps=2", "step=1", "slo.ttft_mean_s=99999", "num_requests=5")
    assert (always.returncode, always.stdout.splitlines()[-2].split()[:2]) == (0, ["over", "128"])


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ([], 2, "Say what has to hold, for example slo.ttft_p99_s=5, or slo.ttft_s=2 slo.tpot_s=0.1."),
        (["slo.ttft_s=1", "find=money"], 2, "find=money: type find=rate or find=instances."),
        (["slo.ttft_s=1", "step=0"], 2, "step must be a positive number, got 0."),
        (["slo.ttft_s=1", "repeats=1.5"], 2, "repeats must be a positive whole number, got 1.5."),
        (["slo.ttft_s=1", "schedular=llumnix"], 2, "schedular: no such key; did you mean scheduler?"),
        (["slo.ttft_s=1", "dry_run=true"], 2, "dry_run=true: runners.capacity compares several values without -m"),
        (["slo.ttft_s=1", "qps=null", "arrivals=recorded"], 2, "A trace at its own times has no rate to ask for"),
        (
            ["slo.ttft_s=1", "qps=66", "step=66"],
            1,
            "failed, RuntimeError: boom (failure.json in outputs/capacity/runs/",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(capacity: Capacity, words: list[str], code: int, sentence: str) -> None:
    done = capacity(*words)
    assert done.returncode == code
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
