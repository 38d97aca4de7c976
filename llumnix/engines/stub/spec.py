"""Options of the engine without a model. Schema of conf/engine/stub.yaml."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from llumnix.engines.spec import EngineSpec
from llumnix.errors import ConfigError


class Scheduling(StrEnum):
    """Who decides what is in an instance's next step.

    per_instance: a scheduler of its own, as in Llumnix; the global scheduler only gets reports. centralized: one
    process that holds all requests of all instances, and that every instance waits for in every iteration.
    """

    per_instance = "per_instance"
    centralized = "centralized"


@dataclass(kw_only=True, slots=True)
class StubEngine(EngineSpec):
    """Iterations that begin less than `warm_up_s` after the first arrival do not enter the statistics of stalls."""

    name: str = "stub"
    scheduling: Scheduling = Scheduling.per_instance
    warm_up_s: float = 0.0

    def __post_init__(self) -> None:
        EngineSpec.__post_init__(self)
        if self.record_steps:
            raise ConfigError("engine=stub computes no steps and records none: leave out engine.record_steps.")
        if not 0 <= self.warm_up_s < math.inf:
            raise ConfigError(f"engine.warm_up_s must not be negative, got {self.warm_up_s}.")
