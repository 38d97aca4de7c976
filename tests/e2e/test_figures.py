"""Every figure of this kind as a user makes it, small: serve, plot, and the page and the reference of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "fig03": ["num_requests=300", "qps=0.6", "repeat=0,1"],
    "fig04": ["num_requests=1,4", "trace.prompt_tokens=64,256"],
    "fig05": ["num_requests=800"],  # with fewer no head of line is ever blocked
    "fig10": [],
    "fig12": ["num_requests=600", "qps=7.5,7.6", "cluster.instances=4", "cluster.kv_blocks=640"],
    "fig16": ["cluster.instances=64", "qps=128,256", "num_requests=400", "engine.warm_up_s=0"],
}
RUNS = {"fig03": 2, "fig04": 8, "fig05": 1, "fig10": 48, "fig12": 4, "fig16": 4}

pytestmark = pytest.mark.xdist_group("figures")  # one set of runs, and not one per worker


def run(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All small experiments, served and plotted with one command each."""
    there = tmp_path_factory.mktemp("figures")
    for experiment, settings in SMALL.items():
        served = run("runners.serve", f"experiment={experiment}", *settings, cwd=there)
        assert served.returncode == 0, served.stdout + served.stderr
    plotted = run("analysis.plot", "fig=all", cwd=there)
    assert plotted.returncode == 0, plotted.stderr
    return there / "outputs"


@pytest.mark.parametrize("figure", SMALL)
def test_a_figure_has_its_files_and_no_claim_is_left_out(outputs: Path, figure: str) -> None:
    folder = outputs / figure / "figures"
    assert (folder / f"{figure}.png").stat().st_size > 10_000
    points = pd.read_csv(folder / f"{figure}.csv")
    assert points["value"].notna().all()
    claims = json.loads((folder / f"{figure}.claim.json").read_text(encoding="utf-8"))
    assert claims["runs"] == RUNS[figure]
    assert claims["claims"]
    assert "not run" not in {each["verdict"] for each in claims["claims"]}


def test_decode_steps_are_those_of_the_cost_model(outputs: Path) -> None:
    points = pd.read_csv(outputs / "fig04" / "figures" / "fig04.csv")
    step = points[(points["row"] == "LLaMA-7B") & (points["metric"] == "Decode Step")].set_index(["series", "x"])[
        "value"
    ]
    base_s, request_s, token_s = 34.2e-3, 0.6e-3, 1.44e-6
    assert step["256 tokens each", 257.0] == pytest.approx(base_s + request_s + 257 * token_s)
    assert step["64 tokens each", 260.0] == pytest.approx(base_s + 4 * request_s + 260 * token_s)


def test_what_a_move_costs_is_within_15_percent_of_the_paper_at_every_length(outputs: Path) -> None:
    compared = run("benchmarks.parity", "fig=10", "worst=0", cwd=outputs.parent)
    assert compared.returncode == 0, compared.stdout
    points = pd.read_csv(outputs / "fig10" / "figures" / "fig10.csv")
    decode = points[points["metric"] == "Decode Latency"].pivot(index=["row", "x"], columns="series", values="value")
    assert len(decode) == 12
    longer = decode["Migration"] / decode["Normal"] - 1
    assert longer.between(0.015, 0.03).all()  # the paper's points: 1.5 to 3.1 %


def test_instances_of_llumnix_stall_less_than_under_a_centralized_scheduler(outputs: Path) -> None:
    points = pd.read_csv(outputs / "fig16" / "figures" / "fig16.csv")
    stall = points[(points["row"] == "64 instances") & (points["metric"] == "Stall Mean")].pivot(
        index="x", columns="series", values="value"
    )
    assert list(stall.index) == [128.0, 256.0]
    assert (stall["Llumnix"] < stall["Centralized"]).all()


def test_the_page_shows_all_figures_and_needs_no_network(outputs: Path) -> None:
    page = (outputs / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(SMALL)
    for figure in SMALL:
        assert f'<section id="{figure}">' in page
        assert f"python -m runners.serve experiment={figure}" in page
    assert "://" not in page  # of any scheme; the text of a picture may say http by chance, but has no colon


def test_reference_results_are_small_copies_with_a_page_of_their_own(outputs: Path) -> None:
    done = run("analysis.reference", "fig=3,12", cwd=outputs.parent)
    assert done.returncode == 0, done.stderr
    kept = sorted(str(path.relative_to(outputs / "reference")) for path in (outputs / "reference").rglob("*.*"))
    files = [
        f"{name}/{name}{suffix}" for name in ("fig03", "fig12") for suffix in (".claim", ".claim.json", ".csv", ".png")
    ]
    assert kept == [*files, "index.html"]
    small, large = outputs / "reference/fig12/fig12.png", outputs / "fig12/figures/fig12.png"
    assert small.stat().st_size < large.stat().st_size
    assert (outputs / "reference" / "index.html").read_text(encoding="utf-8").count("<section") == 2
    missing = run("analysis.reference", "fig=11", cwd=outputs.parent)
    assert missing.returncode == 2
    assert "fig11" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
