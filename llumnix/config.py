"""What is served and on what: the model and the GPU, with the measured step costs of each pair.

These classes are the schema of conf/model and conf/gpu.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llumnix.engines.sim.cost import StepCost
from llumnix.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class Model:
    """A language model, as far as a scheduler has to know it. Only a profile of layers asks for their number."""

    name: str = ""
    label: str = ""
    kv_bytes_per_token: int = 0
    layers: int | None = None

    def __post_init__(self) -> None:
        if self.kv_bytes_per_token <= 0:
            raise ConfigError(f"model.kv_bytes_per_token must be positive, got {self.kv_bytes_per_token}.")
        if self.layers is not None and self.layers < 1:
            raise ConfigError(f"model.layers must be at least 1, got {self.layers}.")


@dataclass(kw_only=True, slots=True)
class Gpu:
    """An accelerator type with the step costs that were measured on it, one entry per model name."""

    name: str = ""
    label: str = ""
    costs: dict[str, StepCost] = field(default_factory=dict)

    def cost_of(self, model: Model) -> StepCost:
        """Return the costs of `model` on this GPU; ConfigError names the models that have been measured."""
        if model.name not in self.costs:
            known = ", ".join(sorted(self.costs)) or "none"
            raise ConfigError(
                f"gpu={self.name} has no measured costs for model={model.name}; choose a model among: {known}."
            )
        return self.costs[model.name]
