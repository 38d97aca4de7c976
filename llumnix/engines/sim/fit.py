"""From measured steps to the coefficients of the cost model, with the error of the fit in each region.

Least squares on relative errors, every region with the same weight, no coefficient negative: the formulas of StepCost
are linear in their coefficients once the points of the dense line are fixed, and once it is known which steps take the
floor, those with prompts whose kernels run faster than they are launched. The points lie at powers of two, and what is
fitted are the line's rises from one to the next, so that no time falls as work grows, in the range of the profile or
beyond. Which steps take the floor is found by turns: fit, see whose compute time is below it, fit again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import nnls

from llumnix.engines.sim.cost import MixedCost, StepCost
from llumnix.engines.sim.dense_line import DenseLine
from llumnix.errors import ConfigError
from llumnix.profile import PROFILE, Region, in_region
from llumnix.record import Columns
from llumnix.request import FloatArray

FIRST_KNOT_TOKENS = 16
"""Below, GPUs read the weights whatever the number of tokens: one piece of the dense line is enough."""
FOLDS = 5
FLOOR_GUESS = 0.9
"""Share of the steps with prompts, the shortest of them, that take the floor when the search begins."""
FLOOR_MARGIN = 1.2
"""A step with prompts tells about the kernels if they take this much longer than the floor: below, noise decides."""
FLOOR_ROUNDS = 10
FLOOR_GAIN = 0.8
"""There is a floor only if the squared error falls below this share of what it is without one."""
_VARIED = {Region.decode: ("decode_requests", "decode_context_tokens"), Region.prefill: ("prefill_tokens",)}
FEWEST_STEPS = {Region.decode: 8, Region.prefill: 5, Region.mixed: 8}
Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class RegionError:
    """Relative error of the fitted times of the steps of one region, as fractions.

    `median`, `p90` and `worst` are of the absolute error; `held_out` is the median of steps that were left out of the
    fit, a fifth of the table at a time.
    """

    region: Region
    steps: int
    mean: float
    median: float
    p90: float
    worst: float
    held_out: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Costs of steps, no other field of `cost` set; how near they come to the table; and each row's fitted time."""

    cost: StepCost
    errors: tuple[RegionError, ...]
    fitted_s: FloatArray


def fit_steps(steps: Columns, dense: DenseLine | None = None) -> Fit:
    """Fit the costs of decode-only, prefill-only and mixed steps to a table with the columns of PROFILE.

    Where the dense line was measured by itself, it is taken as it is, and a constant is added.
    Without mixed steps their coefficients are left out (StepCost.mixed is None). Raises ConfigError, one sentence,
    where there are too few decode-only or prefill-only steps to tell the coefficients apart.
    """
    columns = {name: np.asarray(steps[name], dtype=np.float64) for name in PROFILE.names}
    step_s = columns["step_s"]
    regions = {r: in_region(r, columns["prefill_requests"], columns["decode_requests"]) for r in Region}
    _check(columns, regions)
    if regions[Region.mixed].sum() < FEWEST_STEPS[Region.mixed]:
        del regions[Region.mixed]
    used = np.any([*regions.values()], axis=0) & (step_s > 0)
    regions = {region: rows[used] for region, rows in regions.items()}
    columns = {name: column[used] for name, column in columns.items()}
    tokens = columns["prefill_tokens"] + columns["decode_requests"]
    knots = _knots(tokens) if dense is None else [1]
    table = _Table(
        work=np.column_stack([_rises(tokens, knots), _work(columns, regions, per_token=dense is not None)]),
        known_s=np.zeros(len(tokens)) if dense is None else dense.at(tokens),
        prompts=columns["prefill_requests"],
        request_column=len(knots),
        step_s=columns["step_s"],
        weights=_weights(columns["step_s"], regions),
    )
    coefficients, floored = _fit(table)
    times_s = table.times_s(coefficients)
    error = times_s / table.step_s - 1
    held_out = _held_out(table, floored)
    fitted_s = np.full(len(step_s), np.nan)
    fitted_s[used] = times_s
    return Fit(
        cost=_cost(coefficients, knots, dense, mixed=Region.mixed in regions),
        errors=tuple(_error(region, error[rows], held_out[rows]) for region, rows in regions.items()),
        fitted_s=fitted_s,
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """Steps as the linear terms of their times: a row per step, a column per coefficient, the floor's the last.

    A step takes known_s + work @ coefficients, or the floor if it has prompts and that is more; a cost per prompt comes
    on top.
    """

    work: Matrix
    known_s: FloatArray  # what needs no fit
    prompts: FloatArray  # of each step
    request_column: int  # of the coefficient per prompt
    step_s: FloatArray
    weights: FloatArray

    def rows(self, which: Any) -> _Table:
        """Return some of the steps."""
        return replace(
            self,
            work=self.work[which],
            known_s=self.known_s[which],
            prompts=self.prompts[which],
            step_s=self.step_s[which],
            weights=self.weights[which],
        )

    def compute_s(self, coefficients: FloatArray) -> FloatArray:
        """What the floor competes with."""
        per_prompt_s = self.prompts * coefficients[self.request_column]
        return np.asarray(self.known_s + self.work @ coefficients - per_prompt_s)

    def times_s(self, coefficients: FloatArray) -> FloatArray:
        """Return the time that each step should take."""
        floor_s = np.where(self.prompts > 0, coefficients[-1], 0)
        per_prompt_s = self.prompts * coefficients[self.request_column]
        return np.asarray(np.maximum(self.compute_s(coefficients), floor_s) + per_prompt_s)

    def near_floor(self, coefficients: FloatArray) -> Any:
        """Which steps take the floor, or so little more that they are counted among them, as booleans."""
        return (self.prompts > 0) & (self.compute_s(coefficients) < FLOOR_MARGIN * coefficients[-1])

    def squared_error(self, coefficients: FloatArray) -> float:
        """What a fit makes small."""
        return float(np.sum(((self.times_s(coefficients) - self.step_s) * self.weights) ** 2))

    def solve(self, floored: Any) -> FloatArray:
        """Coefficients, in seconds, none negative, if it is these steps that take the floor."""
        work = np.where(floored[:, None], 0, self.work)
        work[:, self.request_column] = np.where(floored, self.prompts, work[:, self.request_column])
        work[:, -1] = floored
        rest_s = self.step_s - np.where(floored, 0, self.known_s)
        weighted = np.column_stack([work, rest_s]) * self.weights[:, None]
        triangle: Matrix = np.asarray(np.linalg.qr(weighted, mode="r"))  # has the same solution, and few rows
        scale = np.abs(triangle[:, :-1]).max(axis=0)
        scale[scale == 0] = 1  # a column that is nowhere needed
        solution, _ = nnls(triangle[:, :-1] / scale, triangle[:, -1])
        return np.asarray(solution / scale, dtype=np.float64)


def _fit(table: _Table) -> tuple[FloatArray, Any]:
    """The coefficients that come nearest, and which steps take the floor: none, unless that explains the table."""
    none = np.zeros(len(table.step_s), dtype=bool)
    without = table.solve(none)
    with_prompts = table.prompts > 0
    floored = with_prompts & (table.step_s <= np.quantile(table.step_s[with_prompts], FLOOR_GUESS))
    for _ in range(FLOOR_ROUNDS):
        coefficients = table.solve(floored)
        floored, before = table.near_floor(coefficients), floored
        if np.array_equal(floored, before):
            break
    if table.squared_error(coefficients) > FLOOR_GAIN * table.squared_error(without):
        return without, none
    return coefficients, before


def _check(columns: dict[str, FloatArray], regions: dict[Region, Any]) -> None:
    for region, sizes in _VARIED.items():
        rows = regions[region]
        if rows.sum() < FEWEST_STEPS[region]:
            raise ConfigError(
                f"The profile has {rows.sum()} {region}-only steps, and a fit needs at least {FEWEST_STEPS[region]}: "
                f"measure more of them."
            )
        for size in sizes:
            if len(np.unique(columns[size][rows])) < 3:
                raise ConfigError(
                    f"The {region}-only steps of the profile have less than three values of {size}, too few for a fit: "
                    f"measure others."
                )


def _knots(tokens: FloatArray) -> list[int]:
    """Where the dense line bends: 1, and powers of two between which, each and the one before, there are steps."""
    knots, knot = [1], FIRST_KNOT_TOKENS
    while knot <= tokens.max():
        if np.any((tokens > knots[-1]) & (tokens <= knot)):
            knots.append(knot)
        knot *= 2
    return knots if len(knots) > 1 else [1, FIRST_KNOT_TOKENS]


def _rises(tokens: FloatArray, knots: list[int]) -> Matrix:
    """The share that is done of each rise of the dense line, of which the first is its beginning."""
    rises = [np.ones(len(tokens))]
    for start, end in pairwise(knots):
        rises.append(np.clip((tokens - start) / (end - start), 0, None if end == knots[-1] else 1))
    return np.stack(rises, axis=1)


def _work(columns: dict[str, FloatArray], regions: dict[Region, Any], *, per_token: bool) -> Matrix:
    """What each step works on beside the tokens that it computes, a column per coefficient.

    `per_token`: what attention does for each token of a prompt is told apart from the dense line.
    """
    prefills, decodes = columns["prefill_requests"], columns["decode_requests"]
    tokens, context = columns["prefill_tokens"], columns["prefill_context_tokens"]
    squares = 2 * columns["prefill_pairs"] - tokens
    decode_context = columns["decode_context_tokens"]
    none = np.zeros(len(tokens), dtype=bool)
    decode, prefill, mixed = (regions.get(region, none) for region in Region)
    columns_of_work = [
        prefills + decodes,
        decode * decode_context,
        prefill * squares,
        prefill * context,
        mixed * 1.0,
        mixed * decodes,
        mixed * decode_context,
        mixed * squares,
        mixed * context,
        per_token * tokens,
        0.0 * tokens,  # the floor's
    ]
    return np.stack(columns_of_work, axis=1)


def _weights(step_s: FloatArray, regions: dict[Region, Any]) -> FloatArray:
    """One over each step's time, and the regions evened out."""
    weights = 1 / step_s
    for rows in regions.values():
        weights[rows] /= np.sqrt(rows.sum())
    return weights


def _held_out(table: _Table, floored: Any) -> FloatArray:
    """The relative error of each step in a fit that has not seen it, except that it is known who takes the floor."""
    error = np.zeros(len(table.step_s))
    for fold in range(FOLDS):
        out = np.arange(len(error)) % FOLDS == fold
        coefficients = table.rows(~out).solve(floored[~out])
        error[out] = table.rows(out).times_s(coefficients) / table.step_s[out] - 1
    return error


def _cost(coefficients: FloatArray, knots: list[int], dense: DenseLine | None, *, mixed: bool) -> StepCost:
    ms = [float(f"{1000 * value:.6g}") for value in coefficients]
    if dense is None:
        tokens, dense_ms = knots, np.cumsum(ms[: len(knots)])
    else:
        tokens, dense_ms = dense.tokens.astype(int).tolist(), ms[0] + 1000 * dense.time_s
    per_request, decode_token, squares, context, *of_mixed, per_token, floor = ms[len(knots) :]
    base, m_request, m_token, m_squares, m_context = of_mixed
    return StepCost(
        dense_tokens=tokens,
        dense_ms=[round(float(value), 6) for value in dense_ms],
        decode_per_request_ms=per_request,
        decode_per_token_ms=decode_token,
        prefill_floor_ms=floor,
        prefill_per_request_ms=per_request,
        prefill_per_token_ms=per_token,
        prefill_per_token2_ms=squares,
        prefill_per_context_ms=context,
        mixed=MixedCost(
            base_ms=base,
            decode_per_request_ms=float(f"{per_request + m_request:.6g}"),
            decode_per_token_ms=m_token,
            prefill_per_token2_ms=m_squares,
            prefill_per_context_ms=m_context,
        )
        if mixed
        else None,
    )


def _error(region: Region, error: FloatArray, held_out: FloatArray) -> RegionError:
    size = np.abs(error)
    return RegionError(
        region=region,
        steps=len(error),
        mean=float(error.mean()),
        median=float(np.median(size)),
        p90=float(np.percentile(size, 90)),
        worst=float(size.max()),
        held_out=float(np.median(np.abs(held_out))),
    )
