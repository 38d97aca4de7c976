"""`python -m runners.serve` as a person uses it: processes, exit codes, what is printed, what is left on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "runners.serve"]
HEAVY = {"ray", "pandas", "matplotlib", "seaborn", "scipy", "torch", "vllm"}

# Loaded by every Python process that has its directory on PYTHONPATH, so in joblib's workers too.
FAULTS = """
import os, signal, time
import llumnix.workload as workload
real = workload.build
def build(trace, arrivals, *, qps, **rest):
    if qps == 66:
        raise RuntimeError("boom")
    if qps == 65:
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("not whole")
    if qps == 67:
        time.sleep(0.5)
        os.kill(os.getpid(), 9)
    if 68 <= qps < 69:
        with open(f"serving-{qps}", "x") as file:
            file.write(str(signal.getsignal(signal.SIGINT) is signal.SIG_IGN))
        time.sleep(60)
    if qps == 69:
        time.sleep(1.5)
    return real(trace, arrivals, qps=qps, **rest)
workload.build = build
"""
Serve = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(FAULTS)
    return os.environ | {"PYTHONPATH": f"{tmp_path / 'faults'}{os.pathsep}{ROOT}", "HYDRA_FULL_ERROR": "0"}


@pytest.fixture
def serve(tmp_path: Path, environment: dict[str, str]) -> Serve:
    """Run the command in an empty directory, with few requests."""

    def run(*words: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "num_requests=50", *words]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def states(root: Path) -> list[str]:
    """The last of summary.json and failure.json of each run, and anything that should not be there."""
    found = []
    for directory in sorted((root / "runs").iterdir()):
        names = {file.name for file in directory.iterdir()}
        found.append("done" if "summary.json" in names else "failed" if "failure.json" in names else str(names))
        assert not any(name.endswith((".tmp", ".part")) for name in {*names, directory.name})
    return sorted(found)


def test_a_small_run_is_quick_light_and_the_same_everywhere(tmp_path: Path, serve: Serve) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    before = os.times()
    done = serve("num_requests=200", cwd=tmp_path / "a")
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 0, done.stderr
    assert "request latency" in done.stdout
    last = done.stdout.splitlines()[-1]
    directory = tmp_path / "a" / last
    assert (directory / "summary.json").exists()
    assert cpu_s < 5, "1 s on an idle machine"

    listing = "import sys, atexit; atexit.register(lambda: print('MODULES', *sys.modules)); import runners.serve as s;"
    command = [sys.executable, "-c", f"{listing} sys.exit(s.main(['num_requests=200']))"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    other = subprocess.run(command, cwd=tmp_path / "b", env=env, capture_output=True, text=True, timeout=60, check=True)
    modules = next(line for line in other.stdout.splitlines() if line.startswith("MODULES")).split()
    assert HEAVY & {name.partition(".")[0] for name in modules} == set()
    for file in ("requests.parquet", "events.parquet", "instances.parquet", "summary.json"):
        assert (directory / file).read_bytes() == (tmp_path / "b" / last / file).read_bytes()


def test_a_sweep_survives_a_failing_job_and_goes_on_where_it_stopped(tmp_path: Path, serve: Serve) -> None:
    first = serve("-m", "qps=3,66,4")
    assert first.returncode == 1
    assert "RuntimeError: boom" in first.stdout
    assert "Traceback" not in first.stdout + first.stderr
    assert sorted(line[:5] for line in first.stdout.splitlines() if line.startswith("[")) == ["[1/3]", "[2/3]", "[3/3]"]
    assert first.stdout.splitlines()[-1] == "outputs/serve/runs"
    assert states(tmp_path / "outputs/serve") == ["done", "done", "failed"]

    (tmp_path / "faults/sitecustomize.py").write_text("")
    second = serve("-m", "qps=3,66,4", "hydra/launcher=basic")
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("done already") == 3, "two lines and the table"
    assert states(tmp_path / "outputs/serve") == ["done"] * 3


def test_fail_fast_starts_no_more_jobs(tmp_path: Path, serve: Serve) -> None:
    done = serve("-m", "qps=66,3,4", "fail_fast=true", "hydra/launcher=basic")
    assert done.returncode == 1
    assert done.stdout.count("not started") == 3, "two lines and the table"
    assert states(tmp_path / "outputs/serve") == ["failed"]
    (log,) = (tmp_path / "outputs/serve/sweeps").glob("*.jsonl")
    plan, *jobs = [json.loads(line) for line in log.read_text().splitlines()]
    assert plan["jobs"] == 3
    assert [(job["settings"]["qps"], job["state"]) for job in jobs] == [
        ("66.0", "failed"),
        ("3.0", "not started"),
        ("4.0", "not started"),
    ]


def test_a_killed_worker_is_one_sentence_and_what_is_done_is_kept(tmp_path: Path, serve: Serve) -> None:
    done = serve("-m", "qps=3,4,67,5")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("A worker process was killed")
    assert set(states(tmp_path / "outputs/serve")) == {"done"}


@pytest.mark.parametrize(("launcher", "at_once", "ignored"), [("joblib", 2, True), ("basic", 1, False)])
def test_ctrl_c_leaves_only_whole_results(
    tmp_path: Path, environment: dict[str, str], launcher: str, at_once: int, ignored: bool
) -> None:
    jobs = [f"hydra.launcher.n_jobs={at_once}"] if launcher == "joblib" else []
    process = subprocess.Popen(
        [*COMMAND, "-m", "qps=3,68,68.5", "num_requests=50", f"hydra/launcher={launcher}", *jobs],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # whoever runs the tests in the background may ignore it, and children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("[1/3] qps=3.0  done")
    end_s = time.monotonic() + 30
    while len(serving := [file.read_text() for file in tmp_path.rglob("serving-*")]) < at_once or "" in serving:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert serving == [str(ignored)] * at_once
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "Interrupted: 1 of 3 runs are done and kept; the same command goes on with the rest.\n"
    assert out == ""
    assert states(tmp_path / "outputs/serve") == ["done"]


@pytest.mark.parametrize("words", [["qps=65"], ["-m", "qps=3,65,4", "hydra/launcher=basic"]])
def test_ctrl_c_is_one_also_where_what_it_breaks_off_fails(tmp_path: Path, serve: Serve, words: list[str]) -> None:
    done = serve(*words)
    assert done.returncode == 130
    assert done.stderr.startswith("Interrupted: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("outputs/serve/runs/*/failure.json"))


def test_two_processes_at_one_run_do_the_work_once(tmp_path: Path, environment: dict[str, str]) -> None:
    def start() -> subprocess.Popen[str]:
        command = [*COMMAND, "qps=69", "num_requests=50"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)

    both = [start(), start()]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    firsts = sorted(out.splitlines()[0].split("  ")[1] for out, _ in outputs)
    assert firsts == ["done", "done already"]
    assert [err.count("Another process is at outputs/serve/runs/") for _, err in outputs].count(1) == 1
    assert states(tmp_path / "outputs/serve") == ["done"]


def test_an_experiment_sweeps_by_itself_and_leaves_out_what_the_figure_has_not(tmp_path: Path, serve: Serve) -> None:
    words = ["experiment=fig11", "trace=m_m,sharegpt", "dry_run=true", "hydra/launcher=basic"]
    done = serve(*words, "qps=${trace.paper_qps.4}")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert [line[:5] for line in lines] == [f"[{number}/5]" for number in range(1, 6)]
    assert any("trace=sharegpt scheduler=round_robin qps=8.0  would run" in line for line in lines)
    assert any("trace=m_m scheduler=llumnix qps=7.8  would run" in line for line in lines)
    assert not any("trace=m_m scheduler=round_robin" in line for line in lines)
    assert "not in the figure" in done.stdout
    assert not (tmp_path / "outputs/fig11/runs").exists()

    none = serve("experiment=fig11", "trace=m_m", "scheduler=round_robin")
    assert none.returncode == 0
    assert "exclude=[]" in none.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["qpss=3"], "qpss: no such key; did you mean qps?"),
        (["qps=-1"], "qps must be a positive number of requests per second, got -1.0."),
        (["-m", "qps=3,abc"], "qps=abc: Value 'abc' of type 'str' could not be converted to Float"),
        (["qps=1,2"], "qps=1,2: several values are a sweep, add -m"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path: Path, serve: Serve, words: list[str], message: str) -> None:
    done = serve(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "outputs/serve/runs").exists()


def test_a_sweep_with_one_wrong_value_runs_the_others(tmp_path: Path, serve: Serve) -> None:
    done = serve("-m", "qps=3,-3", "hydra/launcher=basic")
    assert done.returncode == 2
    assert "qps=-3.0  wrong input  qps must be" in done.stdout
    assert states(tmp_path / "outputs/serve") == ["done"]


@pytest.mark.parametrize("words", [["qps=3"], ["-m", "qps=3,4"]])
def test_unwritable_outputs_are_one_sentence(tmp_path: Path, serve: Serve, words: list[str]) -> None:
    (tmp_path / "outputs").write_text("not a directory")
    done = serve(*words)
    assert done.returncode == 1
    assert "cannot write results" in (done.stdout + done.stderr).lower()
    assert "Traceback" not in done.stdout + done.stderr


def test_help_and_the_plan_of_an_experiment(serve: Serve) -> None:
    shown = serve("--help")
    assert shown.returncode == 0
    for words in ("experiment=fig11", "scheduler: infaas, least_kv", "Exit codes", "outputs/<name>/runs"):
        assert words in shown.stdout
