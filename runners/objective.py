"""What a cluster has to deliver: limits on the numbers of summary.json, and a share of requests within an SLO."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llumnix.errors import ConfigError
from llumnix.metrics import LATENCIES, PERCENTILES, Slo, slo_attainment
from runners.rundir import SUMMARY

ATTAINMENT = "slo_attainment"
LIMITED = tuple(
    f"{of_class}{name}_{which}_s"
    for of_class in ("", "normal_", "high_")
    for name in ("ttft", "tpot", *LATENCIES)
    for which in ("mean", *(f"p{q}" for q in PERCENTILES))
)
"""What `slo.` may come before; tpot is another name of decode_latency."""
COLUMNS = ["arrival_s", "sent_s", "first_token_s", "end_s", "output_tokens", "status"]


@dataclass(kw_only=True, slots=True)
class Objective:
    """`limits_s`: the most that each of these keys may be. `attainment`: the least share of requests within `slo`."""

    limits_s: dict[str, float] = field(default_factory=dict)
    slo: Slo = field(default_factory=Slo)
    attainment: float = 0.99

    @classmethod
    def parse(cls, words: Mapping[str, str]) -> Objective:
        """Make an objective of `slo.KEY=VALUE` words, without the `slo.`; ConfigError says what is wrong with them."""
        numbers = {key: _number(key, value) for key, value in words.items()}
        of_request = {key: numbers.pop(key) for key in ("ttft_s", "tpot_s") if key in numbers}
        attainment = numbers.pop("attainment", None)
        for key in numbers:
            if key not in LIMITED:
                raise ConfigError(_unknown(key))
        if attainment is not None and not of_request:
            raise ConfigError("slo.attainment is the share of requests within slo.ttft_s and slo.tpot_s: give those.")
        if not numbers and not of_request:
            raise ConfigError("Say what has to hold, for example slo.ttft_p99_s=5, or slo.ttft_s=2 slo.tpot_s=0.1.")
        if attainment is not None and attainment > 1:
            raise ConfigError(f"slo.attainment is a share of requests, at most 1, got {attainment:g}.")
        share = {} if attainment is None else {"attainment": attainment}
        return cls(limits_s=numbers, slo=Slo(**of_request), **share)

    def measure(self, directory: Path) -> dict[str, float]:
        """Return what a finished run has of each number that the objective is about; inf for one that it lacks."""
        summary = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
        found = {key: summary.get(key.replace("tpot", "decode_latency"), math.inf) for key in self.limits_s}
        if self.slo.given:
            import pyarrow.parquet as pq

            table = pq.read_table(directory / "requests.parquet", columns=COLUMNS)
            found[ATTAINMENT] = slo_attainment({name: table[name].to_numpy() for name in COLUMNS}, self.slo)
        return found

    def holds(self, found: Mapping[str, float]) -> bool:
        """Tell whether all of it holds."""
        within = all(found[key] <= limit_s for key, limit_s in self.limits_s.items())
        return within and (not self.slo.given or found[ATTAINMENT] >= self.attainment)

    def show(self, found: Mapping[str, float]) -> str:
        """`ttft_p99_s 3.43 (5)`, each number with what it may at most, or must at least, be."""
        shown = [f"{key} {found[key]:.4g} ({limit_s:g})" for key, limit_s in self.limits_s.items()]
        if self.slo.given:
            shown.append(f"{ATTAINMENT} {found[ATTAINMENT]:.2%} ({self.attainment:.2%})")
        return ", ".join(shown)


def _number(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(f"slo.{key} must be a positive number, got {value}.")
    return number


def _unknown(key: str) -> str:
    close = difflib.get_close_matches(key, ("ttft_s", "tpot_s", "attainment", *LIMITED), n=1)
    hint = f"did you mean slo.{close[0]}?" if close else "there are for example slo.ttft_p99_s and slo.tpot_mean_s."
    return f"slo.{key}: no such limit; {hint}"
