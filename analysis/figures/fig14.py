"""Figure 14 (§6.5): auto-scaling under rising rates and rising burstiness, latencies and number of instances.

Resource Cost is what the released code calls the average number of instances, a mean over steps; that over time, which
is what a bill would show, is in the CSV as Resource Cost (time).
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from analysis import grid

EXPERIMENT = "fig14"
METRICS = {
    **grid.LATENCIES,
    "Resource Cost": "instances_step_weighted_mean",
    "Resource Cost (time)": "instances_mean",
}
ROWS = {"poisson": ("Poisson", "request_rate", "qps"), "gamma": ("Gamma", "cv", "cv")}
"""Arrivals -> row of the figure, name of its x, and the key that has it."""
UNITS = {"Resource Cost": "instances", "Resource Cost (time)": "instances"}
LAYOUT = grid.Layout(
    rows={"Poisson": "Request rate (requests/s)", "Gamma": "CV (2 requests/s)"},
    metrics=list(METRICS)[:-1],
    size_in=(17.5, 5.3),
    margins={"left": 0.075, "right": 0.985, "bottom": 0.1, "top": 0.83, "wspace": 0.31, "hspace": 0.42},
    units=UNITS,
)


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per point and run, in the order of the panels; the cost over time comes last in each row."""
    known = runs[runs["arrivals"].isin(ROWS)]
    rows = known["arrivals"].map(ROWS)
    frame = pd.DataFrame(
        {
            "figure": EXPERIMENT,
            "row": rows.str[0],
            "series": known["config.scheduler.label"],
            "x_name": rows.str[1],
            "x": known["qps"].where(rows.str[2] == "qps", known["cv"]).astype(float),
            "replicate": known["seed"].astype(str) + "." + known["repeat"].astype(str),
            **{metric: known[key] if key in known else float("nan") for metric, key in METRICS.items()},
        }
    )
    return grid.samples(frame, replace(LAYOUT, metrics=list(METRICS)))


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """The grid of panels, rates above and burstiness below."""
    return grid.draw(points, paper, LAYOUT, {})
