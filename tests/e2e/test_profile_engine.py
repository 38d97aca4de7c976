"""`python -m runners.profile engine=vllm_cpu` as a person uses it: an engine of the tiny model, measured and fitted."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from llumnix.profile import PROFILE

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
SMALL = ["kv_blocks=60", "block_size_tokens=32", "max_num_seqs=12", "max_num_batched_tokens=256", "repeats=3"]
ENGINE = ["engine=vllm_cpu", "model=tiny", "gpu=cpu"]


def run(module: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Which profile? Type engine=vllm_gpu or from=DIR"),
        (["engine=sim"], "engine=sim has nothing to measure: type engine=vllm"),
        (["engine=vllm", "repeats=0"], "repeats must be a number, 1 or more, got 0."),
        (["engine=vllm", "limit_s=soon"], "limit_s must be a number, 1 or more, got soon."),
        (["engine=vllm", "engine.tensor_parallel=2"], "measures one engine in this process"),
        (["engine=vlm"], "vllm?"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    done = run("runners.profile", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def vllm() -> None:
    if importlib.util.find_spec("vllm") is None and os.environ.get("CI") != "true":
        pytest.skip("vLLM is not installed; `make test` installs it where pip finds a CPU torch")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, vllm: None) -> Path:
    """A directory in which the tiny model has been measured."""
    directory = tmp_path_factory.mktemp("profile")
    done = run("runners.profile", *ENGINE, *SMALL, "name=here", cwd=directory)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "60 KV blocks" in done.stdout
    assert "left out, because they take more than 12 requests at a time" in done.stdout
    return directory


@pytest.mark.xdist_group("measured")
def test_all_three_kinds_of_steps_are_measured_and_kept(measured: Path) -> None:
    profile = measured / "outputs" / "profile" / "here"
    medians, raw = (pq.read_table(profile / name) for name in ("steps.parquet", "raw_steps.parquet"))
    assert medians.schema.names == raw.schema.names == PROFILE.names
    assert raw.num_rows >= 3 * medians.num_rows > 0
    decodes, prompts = (medians[name].to_numpy() > 0 for name in ("decode_requests", "prefill_requests"))
    for kind in (decodes & ~prompts, prompts & ~decodes, decodes & prompts):
        assert np.count_nonzero(kind) >= 8
    assert (medians["step_s"].to_numpy() > 0).all()
    assert medians["decode_requests"].to_numpy().max() == 12
    about = json.loads((profile / "profile.json").read_text())
    assert (about["kv_blocks"], about["model"], about["device"]) == (60, "tiny", "CPU")
    assert {copy["carrier"] for copy in about["copies"]} == {"inline", "shared_memory"}
    assert all(copy["copy_s"] > 0 for copy in about["copies"])
    assert about["start_s"] > 0


@pytest.mark.xdist_group("measured")
def test_the_simulator_runs_on_what_was_measured_and_the_fit_is_drawn(measured: Path) -> None:
    sim = ["engine=sim_v1", "gpu=here", "model=tiny", "cluster=v1x2", "trace=s_s", "num_requests=60", "qps=20"]
    done = run("runners.serve", "--config-dir", "outputs/profile/here", *sim, cwd=measured)
    assert done.returncode == 0, done.stderr
    drawn = run("analysis.plot", "fig=profile", cwd=measured)
    assert drawn.returncode == 0, drawn.stderr
    assert "here, mixed steps" in drawn.stdout
    assert (measured / "outputs" / "profile" / "figures" / "profile.png").stat().st_size > 10_000


def _decodes_and_prompts(path: Path) -> tuple[int, int]:
    """How many kinds of steps of decodes alone, and of prompts alone, have been written."""
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]] if path.exists() else []
    return sum(row[0] == "0" for row in rows), sum(row[4] == "0" for row in rows if len(row) > 4)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_what_was_measured_until_an_interruption_is_fitted(how: signal.Signals, tmp_path: Path, vllm: None) -> None:
    words = [*ENGINE, "kv_blocks=400", "block_size_tokens=32", "max_num_seqs=32", "repeats=40", "name=half"]
    progress = tmp_path / "progress.txt"
    with progress.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "runners.profile", *words],
            cwd=tmp_path,
            env=os.environ | QUIET | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            # A shell starts what runs in the background with interrupts ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    profile = tmp_path / "outputs" / "profile" / "half"
    begun_s = time.monotonic()
    while min(_decodes_and_prompts(profile / "unfinished_steps.csv")) < 9:
        assert process.poll() is None
        assert time.monotonic() - begun_s < 200
        time.sleep(0.05)
    process.send_signal(how)
    said, _ = process.communicate(timeout=60)
    assert "0/" in progress.read_text()
    assert not re.search(r"\b(\d+)/\1 points measured", progress.read_text())  # it did not go on to its end first
    assert not (profile / "steps.parquet").exists()
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "kept. To fit it: python -m runners.profile from=outputs/profile/half\n" in said
    decodes, prompts = _decodes_and_prompts(profile / "unfinished_steps.csv")
    fitted = run("runners.profile", "from=outputs/profile/half", cwd=tmp_path)
    assert fitted.returncode == 0, fitted.stderr
    assert re.search(f"decode steps +{decodes} ", fitted.stdout)
    assert "gpu=half model=tiny" in fitted.stdout
    steps = pq.read_table(profile / "fit.parquet")
    assert np.count_nonzero(steps["decode_requests"].to_numpy() == 0) == prompts
    assert "kv_blocks: 400" in (profile / "gpu" / "half.yaml").read_text()
