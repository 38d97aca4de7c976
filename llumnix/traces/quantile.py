"""Lengths shaped after published percentiles, for data sets that are not at hand. Reads the real file if given one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llumnix.errors import ConfigError
from llumnix.request import FloatArray, IntArray
from llumnix.traces.base import Lengths, Rng, Streams
from llumnix.traces.file import FileTrace

LEVELS = (0.0, 0.5, 0.8, 0.95, 0.99, 1.0)


@dataclass(kw_only=True, slots=True)
class QuantileTable:
    """A length distribution through its percentiles (tokens), interpolated on a Box-Cox scale.

    `box_cox_lambda` bends the curve between the percentiles, and is solved for the published mean.
    """

    lower: float
    p50: float
    p80: float
    p95: float
    p99: float
    upper: float
    box_cox_lambda: float

    def __post_init__(self) -> None:
        points = self.points()
        if points[0] <= 0 or not all(low < high for low, high in pairwise(points)):
            raise ConfigError(
                f"lower, p50, p80, p95, p99 and upper of a length table must be positive and increase, got {points}."
            )
        if not math.isfinite(self.box_cox_lambda):
            raise ConfigError(f"box_cox_lambda of a length table must be finite, got {self.box_cox_lambda}.")

    def points(self) -> list[float]:
        """Lengths in tokens at LEVELS."""
        return [self.lower, self.p50, self.p80, self.p95, self.p99, self.upper]

    def tokens(self, levels: FloatArray) -> IntArray:
        """Length at each level in [0, 1]: BC^-1(interp(level; LEVELS; BC(points))), rounded, at least 1."""
        bend = self.box_cox_lambda
        points = np.asarray(self.points())
        if bend == 0:
            lengths = np.exp(np.interp(levels, LEVELS, np.log(points)))
        else:
            transformed = np.interp(levels, LEVELS, (points**bend - 1) / bend)
            lengths = (bend * transformed + 1) ** (1 / bend)
        rounded: IntArray = np.maximum(np.rint(lengths).astype(np.int64), 1)
        return rounded


@dataclass(kw_only=True, slots=True)
class QuantileTrace(FileTrace):
    """The file at `path` if one is given, and otherwise a synthetic stand-in with the percentiles of Table 1.

    `rank_correlation` is Spearman's, between prompt and output length of a request, through a Gaussian copula.
    `stratified` takes exactly one length from each of n equal slices of the distribution, so that two draws differ in
    order and pairing only. `failed_fraction` of the rows are failed calls, empty at the source: the artifact does not
    filter them, and its client sends and expects one token for each. They are the lowest lengths of the tables.
    """

    prompt: QuantileTable
    output: QuantileTable
    rank_correlation: float = 0.0
    stratified: bool = True
    failed_fraction: float = 0.0

    def __post_init__(self) -> None:
        self.check()
        self.check_reading()
        if not -1 < self.rank_correlation < 1:
            raise ConfigError(f"trace.rank_correlation must lie between -1 and 1, got {self.rank_correlation}.")
        if not 0 <= self.failed_fraction < 1:
            raise ConfigError(f"trace.failed_fraction must lie in [0, 1), got {self.failed_fraction}.")

    def draw(self, num_requests: int, streams: Streams) -> Lengths:
        """Rows of the real file, or lengths labelled as synthetic."""
        if self.path is not None:
            return FileTrace.draw(self, num_requests, streams)
        failures = round(self.failed_fraction * num_requests)
        levels = paired_levels(num_requests - failures, self.rank_correlation, self.stratified, streams.lengths)
        failed = streams.lengths.choice(num_requests, failures, replace=False)
        prompt_tokens, output_tokens = (
            self._with_failures(table, level, failed)
            for table, level in zip((self.prompt, self.output), levels, strict=True)
        )
        return Lengths(
            prompt_tokens,
            output_tokens,
            None,
            label=f"{self.label} (synthetic, Table-1-shaped)",
            format="percentile table",
            synthetic=True,
            rows_in=num_requests,
        )

    def _with_failures(self, table: QuantileTable, levels: FloatArray, failed: IntArray) -> IntArray:
        count = len(levels) + len(failed)
        served = np.ones(count, dtype=bool)
        served[failed] = False
        tokens = np.ones(count, dtype=np.int64)
        share = len(failed) / count
        tokens[served] = table.tokens(share + (1 - share) * levels)
        return tokens


def paired_levels(count: int, rank_correlation: float, stratified: bool, rng: Rng) -> tuple[FloatArray, FloatArray]:
    """Two columns of levels in (0, 1) with the given Spearman correlation (Gaussian copula).

    The normal draws give only the order; the levels themselves are put into that order afterwards, which needs no
    normal distribution function and leaves the marginals exact.
    """
    pearson = 2 * math.sin(math.pi * rank_correlation / 6)
    first = rng.normal(size=count)
    second = pearson * first + math.sqrt(1 - pearson**2) * rng.normal(size=count)
    prompt_levels, output_levels = (
        (np.arange(count) + 0.5) / count if stratified else np.sort(rng.uniform(size=count)) for _ in range(2)
    )
    return prompt_levels[_ranks(first)], output_levels[_ranks(second)]


def _ranks(values: FloatArray) -> IntArray:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")
