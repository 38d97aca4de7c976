"""Figure 13 on real engines (§6.4): both classes of requests against burstiness, beside the simulator's prediction."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import beside, grid
from analysis.figures import fig13, validation

EXPERIMENT = validation.EXPERIMENT
VARIED = validation.VARIED
LABEL = "CV of the arrivals"


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """A row of panels per class and system, of the runs with both classes."""
    runs = runs[(runs["arrivals"] == "gamma") & (runs["high_priority_fraction"] > 0)]
    frames = []
    for name, prefix in fig13.CLASSES.items():
        keys = {metric: prefix + key for metric, key in grid.LATENCIES.items()}
        frames.append(beside.frame(runs, name + ",\n" + beside.system(runs), runs["cv"], keys))
    return beside.samples(pd.concat(frames, ignore_index=True), "real_fig13", "cv", LABEL)


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """The six columns of latencies."""
    return beside.draw(points, LABEL)
