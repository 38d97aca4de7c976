"""Figure 11 on real engines (§6.3): serving latency against the rate, beside the simulator's prediction."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import beside, grid
from analysis.figures import validation

EXPERIMENT = validation.EXPERIMENT
VARIED = validation.VARIED
LABEL = "Request rate (requests/s)"


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """A row of panels per trace and system, where more than one scheduler has served it."""
    scaling = runs.get("config.scheduler.scaling.enabled", pd.Series(False, index=runs.index)).astype(bool)
    runs = runs[(runs["arrivals"] == "poisson") & (runs["high_priority_fraction"] == 0) & ~scaling]
    row = runs["config.trace.label"] + ",\n" + beside.system(runs).str.replace(", ", ",\n", n=1)
    compared = runs["config.scheduler.name"].groupby(row).transform("nunique") > 1
    runs, row = runs[compared], row[compared]
    return beside.samples(beside.frame(runs, row, runs["qps"], grid.LATENCIES), "real_fig11", "request_rate", LABEL)


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """The six columns of latencies."""
    return beside.draw(points, LABEL)
