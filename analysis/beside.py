"""Runs on real engines as a grid of the paper, with the simulator's prediction of the same runs as hollow markers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import grid, load

SIMULATED = " (simulated)"
ROW_IN = 2.3


def system(runs: pd.DataFrame) -> pd.Series:
    """Say what each run was on: instances and GPU, and KV blocks where they are not those that most runs have."""
    return pd.Series([_system(run, runs["config.cluster.kv_blocks"].mode()) for run in load.rows(runs)], runs.index)


def _system(run: dict[str, Any], usual_blocks: pd.Series) -> str:
    count = int(run["config.cluster.instances"])
    words = [f"{count} instance{'s' if count > 1 else ''}", gpu(run)]
    blocks = run["config.cluster.kv_blocks"]
    if not pd.isna(blocks) and blocks not in usual_blocks.to_numpy():
        words.append(f"{int(blocks)} KV blocks")
    return ", ".join(words)


def gpu(run: dict[str, Any]) -> str:
    """The GPU of each instance, and how many share one; the label of a simulated GPU that is shared says so itself."""
    share, label = run.get("config.engine.num_gpus"), str(run["config.gpu.label"])
    return label if pd.isna(share) or not 0 < share < 1 else f"{label}, {1 / share:.0f} per GPU"


def frame(runs: pd.DataFrame, row: pd.Series, x: pd.Series, metrics: Mapping[str, str]) -> pd.DataFrame:
    """One row per run with a column per metric, for `samples`; series of simulated runs say so."""
    simulated = (runs["config.engine.name"] == "sim").map({True: SIMULATED, False: ""})
    return pd.DataFrame(
        {
            "row": row,
            "series": runs["config.scheduler.label"] + simulated,
            "x": x.astype(float),
            "replicate": [load.replicate(run) for run in load.rows(runs)],
            **{metric: runs[key] if key in runs else float("nan") for metric, key in metrics.items()},
        }
    )


def samples(rows: pd.DataFrame, figure: str, x_name: str, label: str) -> pd.DataFrame:
    """As grid.samples, with the rows that there are."""
    return grid.samples(rows.assign(figure=figure, x_name=x_name), _layout(rows, label))


def draw(points: pd.DataFrame, label: str) -> Figure:
    """The grid; `label` is that of the x axis."""
    simulated = points["series"].str.endswith(SIMULATED)
    prediction = points[simulated].assign(series=points["series"].str.removesuffix(SIMULATED))
    return grid.draw(points[~simulated], prediction, _layout(points, label), {})


def _layout(rows: pd.DataFrame, label: str) -> grid.Layout:
    names = list(dict.fromkeys(rows["row"]))
    metrics = [name for name in rows.columns if name in grid.LATENCIES] or list(dict.fromkeys(rows["metric"]))
    height = 1.1 + ROW_IN * len(names)
    return grid.Layout(
        rows=dict.fromkeys(names, label),
        metrics=metrics,
        size_in=(17.5, height),
        margins={
            "left": 0.085,
            "right": 0.985,
            "bottom": 0.55 / height,
            "top": 1 - 0.75 / height,
            "wspace": 0.29,
            "hspace": 0.4,
        },
        hollow="simulated",
    )
