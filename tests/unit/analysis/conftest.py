"""Run directories as the runner leaves them, made of the paper's own points or of whatever a test asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.figures import fig11
from analysis.points import paper_points
from llumnix.record import SCHEMA_VERSION

MakeRun = Callable[..., Path]
SCHEDULERS = {"Round-Robin": "round_robin", "INFaaS++": "infaas", "Llumnix": "llumnix", "Llumnix-base": "llumnix_base"}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Make one run directory under tmp_path. Keywords replace parts of the config; without summary it is unfinished."""
    made: list[Path] = []

    def make(
        trace: str = "M-M",
        scheduler: str = "Llumnix",
        qps: float = 7.5,
        summary: dict[str, Any] | None = None,
        failure: str = "",
        synthetic: bool = False,
        started_at: str = "2026-01-01T00:00:00",
        schema_version: int = SCHEMA_VERSION,
        groups: dict[str, dict[str, Any]] | None = None,
        **config: Any,
    ) -> Path:
        directory = tmp_path / "fig11" / "runs" / f"run{len(made):04d}"
        directory.mkdir(parents=True)
        made.append(directory)
        run = {
            "run_id": directory.name,
            "config": {
                "name": "fig11",
                "qps": qps,
                "cv": 1.0,
                "seed": 0,
                "repeat": 0,
                "num_requests": 10_000,
                "model": {"name": "llama_7b", "label": "LLaMA-7B"},
                "gpu": {"name": "a10", "costs": {"llama_7b": {"decode_ms": 31.0}}},
                "trace": {"name": trace.lower().replace("-", "_"), "label": trace, "paper_qps": [1, 2]},
                "scheduler": {"name": SCHEDULERS[scheduler], "label": scheduler},
                "arrivals": {"name": "poisson"},
                "engine": {"name": "sim"},
                **config,
                **(groups or {}),
            },
            "workload": {"label": trace, "synthetic": synthetic},
            "git": {"commit": "c0ffee", "dirty": False},
            "started_at": started_at,
            "wall_s": 0.5,
            "schema_version": schema_version,
        }
        (directory / "run.json").write_text(json.dumps(run))
        if summary is not None:
            (directory / "summary.json").write_text(json.dumps(summary))
        if failure:
            (directory / "failure.json").write_text(json.dumps({"error": failure}))
        return directory

    return make


@pytest.fixture
def paper_runs(make_run: MakeRun) -> Callable[..., None]:
    """Runs whose results are the paper's points of some rows and series, one per repeat, scaled by 1 + repeat / 100."""

    def make(rows: list[str], series: list[str], repeats: int = 1) -> None:
        points = paper_points("fig11")
        wanted = points[points["row"].isin(rows) & points["series"].isin(series)]
        for (row, scheduler, qps), group in wanted.groupby(["row", "series", "x"], sort=False):
            for repeat in range(repeats):
                values = zip(group["metric"], group["value"], strict=True)
                summary = {fig11.METRICS[metric]: value * (1 + repeat / 100) for metric, value in values}
                make_run(row, scheduler, qps, summary, repeat=repeat, synthetic=row.endswith("GPT"))

    return make
