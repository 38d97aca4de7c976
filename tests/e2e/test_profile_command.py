"""`python -m runners.profile from=...` as a person uses it, on a small profile whose coefficients are known."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., "subprocess.CompletedProcess[str]"]
HEADER = (
    "prefill_requests,prefill_tokens,prefill_context_tokens,prefill_pairs,decode_requests,decode_context_tokens,step_s"
)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run a module of the project in an empty directory."""

    def run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A directory with steps.csv, of steps of 10 ms + 0.1 ms a token + 0.001 ms per token that decodes hold."""
    rows = []
    for chunk in (0, 4, 16, 40, 60, 100):
        for decodes in (0, 1, 8, 30):
            for held in (0,) if not decodes else (10 * decodes, 300 * decodes, 500 * decodes):
                if chunk or decodes:
                    step_s = (10 + 0.1 * (chunk + decodes) + 0.001 * held) / 1000
                    rows.append(f"{int(chunk > 0)},{chunk},0,{chunk * (chunk + 1) // 2},{decodes},{held},{step_s:.9f}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "steps.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return tmp_path / "mine"


def record_request(profile: Path) -> None:
    """Add what an engine with these steps would have served: one prompt of 40 tokens, three tokens."""
    times = {"queued_ts": 5.0, "first_token_ts": 5.014, "last_token_ts": 5.03429}
    request = {"input_toks": 40, "output_toks": 3, "arrival_time": 77.0} | times
    (profile / "requests.jsonl").write_text(json.dumps(request) + "\n")


def test_a_table_of_steps_becomes_a_gpu_that_runs_take(command: Command, profile: Path, tmp_path: Path) -> None:
    done = command("runners.profile", "from=mine/steps.csv", "name=mine", "model=llama_7b", "kv_blocks=800")
    assert done.returncode == 0, done.stderr
    assert "outputs/profile/mine/gpu/mine.yaml" in done.stdout
    assert len(re.findall(r"(decode|prefill|mixed) steps +\d+ +[+-]0\.0% +0\.0%", done.stdout)) == 3
    fitted = pq.read_table(tmp_path / "outputs/profile/mine/fit.parquet")
    assert fitted["fitted_s"].to_numpy() == pytest.approx(fitted["step_s"].to_numpy(), rel=1e-3)
    serve = re.search(r"use it: python -m (runners\.serve) (.+)", done.stdout)
    assert serve is not None
    ran = command(serve[1], *serve[2].split(), "num_requests=20", "cluster=a10x1", "qps=5")
    assert ran.returncode == 0, ran.stderr
    assert "20 requests finished" in ran.stdout


def test_recorded_requests_beside_it_are_replayed_and_drawn(command: Command, profile: Path, tmp_path: Path) -> None:
    record_request(profile)
    done = command("runners.profile", "from=mine/steps.csv", "name=mine", "model=llama_7b", "kv_blocks=800")
    assert done.returncode == 0, done.stderr
    assert "1 requests replayed, 0 preemptions simulated" in done.stdout
    assert re.search(r"request latency +0\.0342\d* s [+-]0\.0%", done.stdout)
    drawn = command("analysis.plot", "fig=ground_truth")
    assert drawn.returncode == 0, drawn.stderr
    assert re.search(r"time to first token +mean +0\.014 +0\.014 +[+-]0\.0%", drawn.stdout)
    assert (tmp_path / "outputs/ground_truth/figures/ground_truth.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("fullest", "message"),
    [
        (
            None,
            "is not replayed: the size of the KV cache matters, since how full it was is not known; type kv_blocks=N",
        ),
        (99.0, "it was 99 % full; type kv_blocks=N"),
        (40.0, "The KV cache was never more than 40 % full: replayed with as many blocks as it takes."),
    ],
)
def test_without_the_size_of_the_kv_cache_it_is_replayed_only_where_that_does_not_matter(
    command: Command, profile: Path, fullest: float | None, message: str
) -> None:
    record_request(profile)
    if fullest is not None:
        (profile / "timeseries.csv").write_text(f"t,kv_cache_pct\n1.0,3.0\n2.0,{fullest}\n")
    done = command("runners.profile", "from=mine/steps.csv", "model=llama_7b")
    assert done.returncode == 0, done.stderr
    assert message in done.stdout
    assert ("1 requests replayed" in done.stdout) is (fullest == 40.0)


def layers_in(directory: Path) -> Path:
    """A profile of layers whose dense times have one row without a time."""
    directory.mkdir(parents=True)
    dense = [f"mlp,{n},{100 + n}" for n in (1, 16, 32, 64, 128, 256, 512)]
    sequences = [f"sampler,{n},{50 + n}" for n in (1, 64)]
    decodes = [f"0,0,{n},{held},{5 + n * held / 100}" for n in (1, 8, 64) for held in (16, 128, 512)]
    prompts = [f"{n},0,0,0,{5 + n / 10}" for n in (16, 32, 64, 128, 256)]
    for name, head, rows in (
        ("dense", "layer,tokens,time_us", [*dense, "mlp,48,nan"]),
        ("per_sequence", "layer,sequences,time_us", sequences),
        ("attention", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", [*decodes, *prompts]),
    ):
        (directory / f"{name}.csv").write_text("\n".join([head, *rows]) + "\n")
    return directory


def test_a_profile_in_a_folder_below_is_found_and_so_are_the_limits_of_the_engine(
    command: Command, tmp_path: Path
) -> None:
    layers_in(tmp_path / "machine" / "bf16" / "tp1")
    (tmp_path / "machine" / "bench").mkdir()
    record_request(tmp_path / "machine" / "bench")
    shares = "".join(f"{t},7,3,{100 * t * 17 / 2587:.2f}\n" for t in range(1, 150))
    (tmp_path / "machine" / "bench" / "timeseries.csv").write_text(f"t,running,waiting,kv_cache_pct\n{shares}")
    done = command("runners.profile", "from=machine")
    assert done.returncode == 0, done.stderr
    assert "machine/bf16/tp1: 14 steps" in done.stdout
    assert "dense.csv: 1 rows without a usable number are left out" in done.stdout
    assert "added up from 32 layers (model=llama31_8b)" in done.stdout
    assert "timeseries.csv shows that the KV cache had 2,587 blocks" in done.stdout
    assert "timeseries.csv shows that 7 requests ran at most" in done.stdout
    assert "1 requests replayed" in done.stdout
    assert "kv_blocks: 2587" in (tmp_path / "outputs/profile/machine/gpu/machine.yaml").read_text()
    typed = command("runners.profile", "from=machine", "kv_blocks=800", "max_num_seqs=100")
    assert typed.returncode == 0, typed.stderr
    assert "shows" not in typed.stdout
    assert "kv_blocks: 800" in (tmp_path / "outputs/profile/machine/gpu/machine.yaml").read_text()


def test_of_several_profiles_one_has_to_be_typed(command: Command, tmp_path: Path) -> None:
    for folder in ("tp1", "tp2"):
        layers_in(tmp_path / "machine" / folder)
    done = command("runners.profile", "from=machine")
    assert done.returncode == 2
    assert done.stderr == "from=machine has 2 profiles: type one of them, such as from=machine/tp1.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["from=mine/broken.parquet"], "mine/broken.parquet is no parquet file"),
        (["from=mine/empty.csv"], "mine/empty.csv has no row with a step_s above 0"),
        (["from=nowhere"], "from=nowhere: no such file or directory"),
        (
            ["from=mine"],
            "mine/dense.csv is missing: a profile of layers has dense.csv, per_sequence.csv and attention.csv",
        ),
        (["from=mine", "model=llama_7b", "model.layers=null"], "model=llama_7b does not say how many layers it has"),
        (["from=mine/steps.csv", "kv_block=3"], "kv_block: no such key"),
        (["from=mine/steps.csv", "model=gpt"], "model=gpt: no such option"),
        (["from=mine/steps.csv", "-m"], "fits one profile at a time"),
        (["from=mine/wrong.csv"], "has no column prefill_requests"),
        (["from=mine/steps.txt"], "type a directory with attention.csv, or a table of steps, .parquet or .csv"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(command: Command, profile: Path, words: list[str], message: str) -> None:
    (profile / "wrong.csv").write_text("a,b\n1,2\n")
    (profile / "steps.txt").write_text("")
    (profile / "broken.parquet").write_text("no")
    (profile / "empty.csv").write_text(f"{HEADER}\n0,0,0,0,1,5,0.0\n")
    done = command("runners.profile", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_help_explains(command: Command) -> None:
    done = command("runners.profile", "--help")
    assert done.returncode == 0
    assert "python -m runners.profile from=DIR kv_blocks=2588" in done.stdout
