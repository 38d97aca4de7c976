"""Options of the simulated engine. Schema of conf/engine/sim.yaml."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from llumnix.engines.spec import EngineSpec
from llumnix.errors import ConfigError


class Batching(StrEnum):
    """How a step is filled.

    prefill_first: vLLM 0.1.x, prefill-only steps before decode steps. chunked: vLLM V1, decodes and chunks of prompts
    in one step.
    """

    prefill_first = "prefill_first"
    chunked = "chunked"


@dataclass(kw_only=True, slots=True)
class SimEngine(EngineSpec):
    """The simulated engine. A request reaches the scheduler, and at once an instance, `front_end_s` after it was sent.

    Two of vLLM V1's defaults, for batching=chunked only: async_scheduling plans a step when the one before it begins;
    with prefix_caching a preempted request finds again those of its blocks that nobody has used meanwhile.
    """

    name: str = "sim"
    batching: Batching = Batching.prefill_first
    async_scheduling: bool = True
    prefix_caching: bool = True
    front_end_s: float = 0.0

    def __post_init__(self) -> None:
        EngineSpec.__post_init__(self)
        if not 0 <= self.front_end_s < math.inf:
            raise ConfigError(f"engine.front_end_s must be a number of seconds, 0 or more, got {self.front_end_s}.")
