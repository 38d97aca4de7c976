"""Options of the simulated engine. Schema of conf/engine/sim.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from llumnix.errors import ConfigError


class Batching(StrEnum):
    """How a step is filled: prefill_first is vLLM 0.1.x (prefill-only steps before decode steps)."""

    prefill_first = "prefill_first"


@dataclass(kw_only=True, slots=True)
class SimEngine:
    """The simulated engine; `sample_period_s` is the period of the rows of instances.parquet."""

    name: str = "sim"
    batching: Batching = Batching.prefill_first
    sample_period_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.sample_period_s > 0:
            raise ConfigError(f"engine.sample_period_s must be positive, got {self.sample_period_s}.")
