"""What samples (one row per point and run) say about a claim: value, interval, the point it comes from, verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from analysis.claims.claim import RATIOS, Claim, Kind, Verdict
from analysis.points import CONFIDENCE

Array = npt.NDArray[np.float64]
NAN = math.nan


@dataclass(frozen=True, slots=True)
class Result:
    """A claim and what was found. Numbers are NaN where there is nothing to compute them from.

    `typical` is the steadier reading of the same sentence: the median of ratios or differences over points instead of
    the largest, the reduction of the sum instead of the mean of reductions. `paper` and `paper_typical` are the same
    computed from the paper's own points. `n` is the smallest number of runs behind a point.
    """

    claim: Claim
    verdict: Verdict
    value: float = NAN
    low: float = NAN
    high: float = NAN
    point: str = ""
    typical: float = NAN
    points: int = 0
    points_expected: int = 0
    n: int = 0
    paper: float = NAN
    paper_point: str = ""
    paper_typical: float = NAN


def evaluate(claim: Claim, samples: pd.DataFrame, paper: pd.DataFrame) -> Result:
    """Judge one claim over the points that the paper has and that were measured for every series it names.

    Where no point of the paper is known, over all points that were measured.
    """
    published = _cells(claim, paper.assign(replicate=0))
    theirs = _Values.of(claim, published)
    measured = _cells(claim, samples)
    known = len(published) > 0
    cells = measured.loc[measured.index.intersection(published.index, sort=False)] if known else measured
    result = Result(
        claim,
        Verdict.NOT_RUN,
        points_expected=len(published) if known else len(measured),
        paper=theirs.value,
        paper_point=theirs.point,
        paper_typical=theirs.typical,
    )
    if cells.empty:
        return result
    ours = _Values.of(claim, cells)
    low, high = _interval(claim, cells)
    return replace(
        result,
        verdict=claim.verdict(ours.value, low, high, complete=len(cells) == result.points_expected),
        value=ours.value,
        low=low,
        high=high,
        point=ours.point,
        typical=ours.typical,
        points=len(cells),
        n=int(cells["n"].to_numpy().min()),
    )


@dataclass(frozen=True, slots=True)
class _Values:
    value: float
    point: str
    typical: float

    @classmethod
    def of(cls, claim: Claim, cells: pd.DataFrame) -> _Values:
        if cells.empty:
            return cls(NAN, "", NAN)
        means = cells["mean"].to_numpy().T
        statistic, typical, at = STATISTICS[claim.kind]
        point = "mean over points"
        if at is not None:
            row, x = cells.index[at(means, _rows_of(cells))]
            point = f"{row} @ {x:g}"
        rows = _rows_of(cells)
        return cls(float(statistic(means, rows)), point, float(typical(means, rows)))


def _cells(claim: Claim, samples: pd.DataFrame) -> pd.DataFrame:
    """Per (row, x): mean, variance of the mean and n of each series of the claim; only points that have all series."""
    wanted = samples["metric"].eq(claim.metric) & samples["row"].isin(claim.rows) & samples["series"].isin(claim.series)
    grouped = samples[wanted].groupby(["row", "x", "series"], sort=False)["value"].agg(["mean", "var", "count"])
    grouped["var"] /= grouped["count"]
    table = pd.DataFrame(grouped.rename(columns={"count": "n"}).unstack("series"))
    columns = pd.MultiIndex.from_product([["mean", "var", "n"], claim.series])
    order = sorted(table.index, key=lambda key: (claim.rows.index(key[0]), key[1]))
    return table.reindex(columns=columns).reindex(order).dropna(subset=[("mean", series) for series in claim.series])


def _rows_of(cells: pd.DataFrame) -> npt.NDArray[np.intp]:
    return np.unique(cells.index.get_level_values("row"), return_inverse=True)[1]


def _interval(claim: Claim, cells: pd.DataFrame) -> tuple[float, float]:
    """95 % interval by the delta method: the spread over runs of each mean, carried to first order into the value.

    Degrees of freedom after Welch and Satterthwaite. Ratios are treated as logarithms. For a largest-of claim this is
    the interval of the named point: that another point might have been the largest is not in it.
    """
    if (cells["n"].to_numpy() < 2).any():
        return NAN, NAN
    means, variances, n = (cells[name].to_numpy().T for name in ("mean", "var", "n"))
    statistic, rows = STATISTICS[claim.kind][0], _rows_of(cells)
    scale = np.log if claim.kind in RATIOS else float
    unscale = np.exp if claim.kind in RATIOS else float
    centre = scale(statistic(means, rows))
    parts = np.zeros_like(means)
    for cell in np.ndindex(means.shape):
        step = np.zeros_like(means)
        step[cell] = max(1e-6 * abs(means[cell]), 1e-12)
        slope = (scale(statistic(means + step, rows)) - centre) / step[cell]
        parts[cell] = slope**2 * variances[cell]
    total = parts.sum()
    if not total > 0:
        return float(unscale(centre)), float(unscale(centre))
    freedom = total**2 / (parts**2 / (n - 1)).sum()
    half = math.sqrt(total) * stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
    return float(unscale(centre - half)), float(unscale(centre + half))


# Each statistic takes means of shape (series, points), the baseline first, and the row number of each point.
Statistic = Callable[[Array, npt.NDArray[np.intp]], float]
Where = Callable[[Array, npt.NDArray[np.intp]], int]


def _ratios(means: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(means[0] == means[1], 1.0, means[0] / means[1])


def _mean_reduction(means: Array, _: npt.NDArray[np.intp]) -> float:
    lossy = means[0] > 0
    return float(np.mean(1 - means[1][lossy] / means[0][lossy])) if lossy.any() else 0.0


def _pooled_reduction(means: Array, _: npt.NDArray[np.intp]) -> float:
    return float(1 - means[1].sum() / means[0].sum()) if means[0].sum() > 0 else 0.0


def _spread(means: Array, rows: npt.NDArray[np.intp]) -> Array:
    """max / min - 1 over the points of each row, given to each of its points."""
    own = means[-1]
    of_row = [own[rows == row].max() / own[rows == row].min() - 1 for row in range(rows.max() + 1)]
    return np.array(of_row)[rows]


def _highest_of_widest_row(means: Array, rows: npt.NDArray[np.intp]) -> int:
    return int(np.lexsort((means[-1], _spread(means, rows)))[-1])


STATISTICS: dict[Kind, tuple[Statistic, Statistic, Where | None]] = {
    Kind.RATIO_UP_TO: (
        lambda means, _: float(_ratios(means).max()),
        lambda means, _: float(np.median(_ratios(means))),
        lambda means, _: int(_ratios(means).argmax()),
    ),
    Kind.RATIO_FROM: (
        lambda means, _: float(_ratios(means).min()),
        lambda means, _: float(np.median(_ratios(means))),
        lambda means, _: int(_ratios(means).argmin()),
    ),
    Kind.REDUCTION_UP_TO: (
        lambda means, _: float(1 - 1 / _ratios(means).max()),
        lambda means, _: float(1 - 1 / np.median(_ratios(means))),
        lambda means, _: int(_ratios(means).argmax()),
    ),
    Kind.REDUCTION_MEAN: (_mean_reduction, _pooled_reduction, None),
    Kind.ABSOLUTE_MEAN: (
        lambda means, _: float(np.mean(means[0] - means[1])),
        lambda means, _: float(np.median(means[0] - means[1])),
        None,
    ),
    Kind.BOUND: (
        lambda means, _: float((1 / _ratios(means)).max() - 1),
        lambda means, _: float(np.median(1 / _ratios(means)) - 1),
        lambda means, _: int((1 / _ratios(means)).argmax()),
    ),
    Kind.FLAT: (
        lambda means, rows: float(_spread(means, rows).max()),
        lambda means, rows: float(np.median(_spread(means, rows))),
        _highest_of_widest_row,
    ),
    Kind.VALUE: (lambda means, _: float(np.mean(means[-1])), lambda means, _: float(np.median(means[-1])), None),
    Kind.VALUE_UP_TO: (
        lambda means, _: float(means[-1].max()),
        lambda means, _: float(np.median(means[-1])),
        lambda means, _: int(means[-1].argmax()),
    ),
    Kind.AT_LEAST: (
        lambda means, _: float(means[-1].min()),
        lambda means, _: float(np.median(means[-1])),
        lambda means, _: int(means[-1].argmin()),
    ),
}
