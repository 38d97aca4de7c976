"""The map of where migration pays as a user makes it, small: systems of two experiments in one figure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, *arguments: str, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_small_memory_makes_migration_pay_and_large_memory_does_not(tmp_path: Path) -> None:
    """M-M (1k) with room for 5 requests, half full and with a dispatch on old reports; and with room for 42."""
    run("runners.serve", "experiment=payoff", "trace=m_m_1k", "cluster.kv_blocks=100,800", "qps=5.6,19",
        "num_requests=1500", "seed=0", "scheduler.load_reports=completed_step", cwd=tmp_path)  # fmt: skip
    run("runners.serve", "experiment=payoff_v1", "gpu=h100_llama_7b", "model=llama_7b", "trace=m_m_1k",
        "cluster.kv_blocks=100", "qps=22", "num_requests=1500", "seed=0", "scheduler.load_reports=completed_step",
        cwd=tmp_path)  # fmt: skip
    printed = run("analysis.plot", "fig=payoff", cwd=tmp_path)
    assert "room" in printed
    folder = tmp_path / "outputs" / "payoff" / "figures"
    assert (folder / "payoff.png").stat().st_size > 10_000
    points = pd.read_csv(folder / "payoff.csv").set_index(["row", "series", "metric"])["value"]
    view = "LLaMA-7B, dispatch sees the last step"
    for system in (f"16 x A10, {view}", f"16 x H100, {view}"):
        assert points[system, "M-M (1k), room 6", "TTFT P99"] > 1  # log2: at least halved
    assert abs(points[f"16 x A10, {view}", "M-M (1k), room 50", "TTFT P99"]) < 0.1
    assert 0.2 < points[f"16 x A10, {view}", "M-M (1k), room 6", "KV usage"] < 0.8
