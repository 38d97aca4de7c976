"""Figure 13 (§6.4): normal and high-priority requests with and without support for priorities, against burstiness."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import grid

EXPERIMENT = "fig13"
X_NAME = "cv"
CLASSES = {"Normal": "normal_", "High": "high_"}
"""Row of the figure -> prefix of the keys of summary.json."""
METRICS = {
    **grid.LATENCIES,
    "Decode Execution Time": "exec_mean_s",
}
SERIES = ["Llumnix", "Llumnix-base"]
LAYOUT = grid.Layout(
    rows=dict.fromkeys(CLASSES, "CV of the arrivals"),
    metrics=list(METRICS),
    size_in=(17.5, 4.9),
    margins={"left": 0.075, "right": 0.985, "bottom": 0.11, "top": 0.82, "wspace": 0.29, "hspace": 0.3},
    names={"High": "High priority"},
)


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per panel point and run, in the order of the panels; runs with one class only are no points."""
    known = runs[runs["config.scheduler.label"].isin(SERIES)]
    frames = [
        pd.DataFrame(
            {
                "figure": EXPERIMENT,
                "row": row,
                "series": known["config.scheduler.label"],
                "x_name": X_NAME,
                "x": known["cv"].astype(float),
                "replicate": known["seed"].astype(str) + "." + known["repeat"].astype(str),
                **{m: known[prefix + key] if prefix + key in known else float("nan") for m, key in METRICS.items()},
            }
        )
        for row, prefix in CLASSES.items()
    ]
    return grid.samples(pd.concat(frames, ignore_index=True), LAYOUT)


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """The grid of panels, one row for each class."""
    return grid.draw(points, paper, LAYOUT, {})
