"""Figure 10 on real engines (§6.2): moves between two H100s, and the gap between tokens; the paper has A10s."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import fig10
from analysis.points import paper_points

EXPERIMENT = "h100_fig10"
VARIED = fig10.VARIED


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """As for Figure 10."""
    return fig10.samples(runs).assign(figure=EXPERIMENT)


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """As Figure 10, beside its published points."""
    return fig10.draw(points, paper_points(fig10.EXPERIMENT), synthetic)
