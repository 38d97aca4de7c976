"""From measured steps to the coefficients of the cost model, with the error of the fit in each region."""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.engines.sim.cost import StepCost
from llumnix.profile import Region
from llumnix.record import Columns


@dataclass(frozen=True, slots=True)
class RegionError:
    """Relative error of the fitted time of the steps of one region; percentiles over its rows, all fractions."""

    region: Region
    steps: int
    mean: float  # signed: how much longer the fitted steps are in all
    median: float  # of the absolute error, like the next two
    p90: float
    worst: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients of the steps, no other field of `cost` set, and how near they come to the rows they were fitted on."""

    cost: StepCost
    errors: tuple[RegionError, ...]


def fit_steps(steps: Columns) -> Fit:
    """Fit the costs of decode-only, prefill-only and mixed steps to a table with the columns of llumnix.profile.PROFILE.

    A region without rows takes its coefficients from the others. Raises ConfigError, one sentence that names what is
    missing, where decode-only or prefill-only steps are too few or too much alike to tell the coefficients apart.
    """
    raise NotImplementedError
