"""Figure 11 (§6.3): serving performance, seven traces by seven metrics, against the request rate."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import grid

EXPERIMENT = "fig11"
X_NAME = "request_rate"
ROWS = ["ShareGPT", "BurstGPT", "S-S", "M-M", "L-L", "S-L", "L-S"]
METRICS = {
    **grid.LATENCIES,
    "Preemption Loss": "preemption_loss_mean_s",
}
"""Column of the figure -> key of summary.json."""
LAYOUT = grid.Layout(
    rows=dict.fromkeys(ROWS, "Request rate (requests/s)"),
    metrics=list(METRICS),
    size_in=(17.5, 14.0),
    margins={"left": 0.075, "right": 0.995, "bottom": 0.04, "top": 0.935, "wspace": 0.29, "hspace": 0.33},
)


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per panel point and run, in the order of the panels: analysis.points.KEY, value, unit, replicate."""
    known = runs[runs["config.trace.label"].isin(ROWS)]
    frame = pd.DataFrame(
        {
            "figure": EXPERIMENT,
            "row": known["config.trace.label"],
            "series": known["config.scheduler.label"],
            "x_name": X_NAME,
            "x": known["qps"].astype(float),
            "replicate": known["seed"].astype(str) + "." + known["repeat"].astype(str),
            **{metric: known[key] if key in known else float("nan") for metric, key in METRICS.items()},
        }
    )
    return grid.samples(frame, LAYOUT)


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """The grid of panels. Rows in `synthetic` say that their lengths come from a generator."""
    return grid.draw(points, paper, LAYOUT, dict.fromkeys(synthetic, "synthetic lengths"))
