"""What each choice between the paper's text and its released code does to parity: `python -m benchmarks.readings`

Runs the Llumnix series of Figure 11's generated traces at the lowest, middle and highest rate, once each, with one
choice changed at a time, and prints median |ln(sim / paper)| per metric. Differences below about 0.03 (0.01 for means)
are noise; repeat=1 shows how much.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from joblib import Parallel, delayed
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from analysis import words
from analysis.figures.fig11 import METRICS
from analysis.points import paper_points
from benchmarks.measure import CONF
from benchmarks.parity import ALLOWANCE
from llumnix import metrics
from runners.config import register
from runners.job import perform

TRACES = ("s_s", "m_m", "l_l", "s_l", "l_s")
RATES = (0, 2, 4)
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "queue demand: head of line (paper)": ["scheduler.freeness.queue_demand=head_of_line"],
    "request: shortest (paper)": ["scheduler.migration.request_choice=shortest"],
    "request: longest": ["scheduler.migration.request_choice=longest"],
    "pairs persist (paper)": ["scheduler.migration.persistent_pairs=true"],
    "reports: immediate": ["scheduler.load_reports=immediate"],
    "preempted is no source (paper)": ["scheduler.migration.preempted_is_source=false"],
    "threshold 3 everywhere": ["trace.migrate_threshold_blocks=3"],
    "threshold 10 everywhere": ["trace.migrate_threshold_blocks=10"],
    "two thresholds: out 3, in 10": [
        "scheduler.migration.out_threshold_blocks=3",
        "scheduler.migration.in_threshold_blocks=10",
    ],
    "round every 1 s": ["scheduler.migration.period_s=1"],
    "one stage (stop and copy)": ["scheduler.migration.max_stages=1"],
    "851 KV blocks (paper's text)": ["cluster.kv_blocks=851"],
    "no prefill floor, no front end": [
        "gpu.costs.llama_7b.prefill_floor_ms=0",
        "gpu.costs.llama_7b.prefill_base_ms=-0.4",
    ],
}


def errors(overrides: list[str]) -> dict[str, float]:
    """Return |ln(sim / paper)| of each metric of one run."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        conf: Any = OmegaConf.to_object(compose("serve", overrides))
    summary = metrics.summarize(perform(conf, None)[1].requests)
    paper = paper_points("fig11")
    paper = paper[
        (paper["row"] == conf.trace.label) & (paper["series"] == conf.scheduler.label) & (paper["x"] == conf.qps)
    ]
    published = dict(zip(paper["metric"], paper["value"], strict=True))
    result = {}
    for metric, key in METRICS.items():
        ours = float(summary[key])
        near = abs(ours - published[metric]) <= ALLOWANCE.get(metric, 0.0)
        result[metric] = 0.0 if near else abs(float(np.log(max(ours, 1e-6) / published[metric])))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run all variants and print one row for each."""
    asked = words.parse(
        argv, "benchmarks.readings", ["repeat"], str(__doc__), "  python -m benchmarks.readings repeat=1"
    )
    points = [
        [f"trace={t}", f"qps=${{trace.paper_qps.{r}}}", f"repeat={asked.get('repeat', '0')}"]
        for t in TRACES
        for r in RATES
    ]
    jobs = [(name, [*point, *change]) for name, change in VARIANTS.items() for point in points]
    found = Parallel(n_jobs=-1)(delayed(errors)(overrides) for _, overrides in jobs)
    table = Table("choice", *METRICS)
    for name in VARIANTS:
        rows = [error for (job, _), error in zip(jobs, found, strict=True) if job == name]
        table.add_row(name, *(f"{np.median([row[metric] for row in rows]):.3f}" for metric in METRICS))
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
