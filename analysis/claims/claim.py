"""A claim as data: what the paper says, about which points, and how much agreement counts as which verdict."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

FOLDER = Path(__file__).parent


class Kind(StrEnum):
    """What a claim computes from the values of two series, or of one, at the points it ranges over.

    RATIO_UP_TO     max(baseline / own): "up to N times better"
    RATIO_FROM      min(baseline / own): "N times better or more"
    REDUCTION_UP_TO max(1 - own / baseline): "up to N % lower"
    REDUCTION_MEAN  mean(1 - own / baseline) over points whose baseline is not 0: "N % lower on average"
    ABSOLUTE_MEAN   mean(baseline - own): "N seconds lower on average"
    BOUND           max(own / baseline) - 1: "at most N % more"
    FLAT            max(own) / min(own) - 1, the largest over rows: "nearly constant", varying by at most N %
    VALUE           mean(own): "N on average", or simply "N"
    VALUE_UP_TO     max(own): "up to N"
    AT_LEAST        min(own): "N or more"
    """

    RATIO_UP_TO = "ratio_up_to"
    RATIO_FROM = "ratio_from"
    REDUCTION_UP_TO = "reduction_up_to"
    REDUCTION_MEAN = "reduction_mean"
    ABSOLUTE_MEAN = "absolute_mean"
    BOUND = "bound"
    FLAT = "flat"
    VALUE = "value"
    VALUE_UP_TO = "value_up_to"
    AT_LEAST = "at_least"


RATIOS = (Kind.RATIO_UP_TO, Kind.RATIO_FROM)
OF_ONE_SERIES = (Kind.FLAT, Kind.VALUE, Kind.VALUE_UP_TO, Kind.AT_LEAST)
PLAIN_VALUE = (Kind.VALUE, Kind.VALUE_UP_TO)


class Verdict(StrEnum):
    """How well a claim held; docs/metrics.md has the rule in words."""

    REPRODUCED = "reproduced"
    PARTLY = "partly"
    NOT = "not"
    NOT_RUN = "not run"


GAIN = (0.8, 1.25)
"""Reproduced ratios: ln(measured) / ln(paper) lies in this range ..."""
RATIO = 1.5
"""... and the measured ratio is within this factor of the paper's, which is what binds for large ones."""
REDUCTION = 0.10
"""Reproduced reductions: within this many (100 percentage) points of the paper's."""
ABSOLUTE = 1.25
"""Reproduced differences, largest reductions and plain values: within this factor of the paper's."""
SIMILAR = 2.0
"""Partly reproduced plain values: within this factor of the paper's."""
SLACK = 0.05
"""Partly reproduced bounds: above the paper's bound by at most this much."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence. `baseline` is for kinds that compare two series; `unit` of a plain value: share, x, s, ms or steps.

    `readings` are other published numbers for the same sentence.
    """

    id: str
    text: str
    kind: Kind
    metric: str
    own: str
    rows: tuple[str, ...]
    expected: float
    baseline: str = ""
    unit: str = "share"
    readings: dict[str, float] = field(default_factory=dict)

    @property
    def series(self) -> tuple[str, ...]:
        """The series that must have run, the baseline first."""
        return (self.own,) if self.kind in OF_ONE_SERIES else (self.baseline, self.own)

    def verdict(self, measured: float, low: float, high: float, complete: bool) -> Verdict:
        """Judge a measured value with its interval (NaN: none); points that did not run cap the verdict at PARTLY."""
        if self.kind in (Kind.BOUND, Kind.FLAT):
            near, right_way = measured <= self.expected, measured <= self.expected + SLACK
        elif self.kind is Kind.AT_LEAST:
            near = measured >= self.expected and not low < self.expected
            right_way = measured >= self.expected - SLACK
        elif self.kind in PLAIN_VALUE:
            near, right_way = (self._within(factor, measured) for factor in (ABSOLUTE, SIMILAR))
        else:
            nothing = 1.0 if self.kind in RATIOS else 0.0
            right_way = measured > nothing
            near = right_way and self._near(measured) and not low <= nothing <= high
        if not right_way:
            return Verdict.NOT
        return Verdict.REPRODUCED if near and complete else Verdict.PARTLY

    def _near(self, measured: float) -> bool:
        if self.kind in RATIOS:
            gain = math.log(measured) / math.log(self.expected)
            return GAIN[0] <= gain <= GAIN[1] and 1 / RATIO <= measured / self.expected <= RATIO
        if self.kind is Kind.REDUCTION_MEAN:
            return abs(measured - self.expected) <= REDUCTION
        return self._within(ABSOLUTE, measured)

    def _within(self, factor: float, measured: float) -> bool:
        """Within a factor of the paper's; of a plain ratio only what it has beyond 1x counts, since 1x is no effect."""
        nothing = 1.0 if self.kind in PLAIN_VALUE and self.unit == "x" else 0.0
        return 1 / factor <= (measured - nothing) / (self.expected - nothing) <= factor

    def show(self, value: float) -> str:
        """A value of this claim as the paper would print it."""
        if math.isnan(value):
            return "-"
        unit = "x" if self.kind in RATIOS else "s" if self.kind is Kind.ABSOLUTE_MEAN else self.unit
        if unit == "share":
            return f"{100 * value:.1f} %"
        return f"{value:.{2 if abs(value) < 10 else 1}f}{unit if unit == 'x' else f' {unit}'}"


def claims_of(figure: str) -> list[Claim]:
    """The claims about a figure, in the paper's order; [] for a figure without a file of claims."""
    path = FOLDER / f"{figure}.toml"
    if not path.exists():
        return []
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    rows = {name: tuple(members) for name, members in content["rows"].items()}
    return [Claim(**{**entry, "kind": Kind(entry["kind"]), "rows": rows[entry["rows"]]}) for entry in content["claim"]]
