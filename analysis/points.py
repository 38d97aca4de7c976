"""The points of a figure as a tidy table, ours and the paper's in the same columns, so that they join.

Three stages: samples (one row per point and run), points (their mean with an interval), and the paper's own points.
The run is the unit of uncertainty: percentiles are taken within a run, means and intervals over runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

KEY = ["figure", "row", "metric", "series", "x_name", "x"]
COLUMNS = [*KEY, "value", "unit", "ci_low", "ci_high", "n"]
CONFIDENCE = 0.95
PAPER = Path(__file__).parent / "paper" / "points.csv"


def paper_points(figure: str) -> pd.DataFrame:
    """The published points of one figure, in the paper's order. They were read off its vector graphics."""
    points = pd.read_csv(PAPER)
    return points[points["figure"] == figure].reset_index(drop=True)


def aggregate(samples: pd.DataFrame) -> pd.DataFrame:
    """Mean over runs of each point with its 95 % Student t interval; the interval is NaN where there is one run.

    `samples` has the columns of KEY, value and unit, one row per run; the order of first appearance is kept.
    """
    grouped = samples.groupby([*KEY, "unit"], sort=False)["value"]
    points = grouped.agg(value="mean", deviation="std", n="count").reset_index()
    runs = points["n"].to_numpy()
    with np.errstate(invalid="ignore"):
        half = points["deviation"] / np.sqrt(runs) * stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(runs - 1, 1))
    half = half.where(runs > 1)
    return points.assign(ci_low=points["value"] - half, ci_high=points["value"] + half)[COLUMNS]


def missing(points: pd.DataFrame, paper: pd.DataFrame) -> dict[tuple[str, str], list[float]]:
    """(row, series) -> the x that the paper has and we have not, for every series that is not complete."""
    published, measured = _x_by_series(paper), _x_by_series(points)
    gaps = {key: [x for x in xs if x not in measured.get(key, [])] for key, xs in published.items()}
    return {key: xs for key, xs in gaps.items() if xs}


def to_csv(points: pd.DataFrame) -> str:
    """The points as CSV text, the same bytes for the same numbers."""
    return points.to_csv(index=False, float_format="%.9g", lineterminator="\n")


def _x_by_series(points: pd.DataFrame) -> dict[tuple[str, str], list[float]]:
    groups = points.groupby(["row", "series"], sort=False)["x"]
    return {(str(row), str(series)): sorted(x.unique()) for (row, series), x in groups}
