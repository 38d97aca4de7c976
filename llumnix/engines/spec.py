"""What the options of every engine have in common."""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class EngineSpec:
    """An engine; `sample_period_s` is the period of the rows of instances.parquet.

    `record_steps` adds steps.parquet: how long the steps took, on each instance.
    """

    name: str = ""
    sample_period_s: float = 10.0
    record_steps: bool = False

    def __post_init__(self) -> None:
        if not self.sample_period_s > 0:
            raise ConfigError(f"engine.sample_period_s must be positive, got {self.sample_period_s}.")
