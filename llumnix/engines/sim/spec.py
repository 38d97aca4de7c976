"""Options of the simulated engine. Schema of conf/engine/sim.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from llumnix.engines.spec import EngineSpec


class Batching(StrEnum):
    """How a step is filled: prefill_first is vLLM 0.1.x (prefill-only steps before decode steps)."""

    prefill_first = "prefill_first"


@dataclass(kw_only=True, slots=True)
class SimEngine(EngineSpec):
    """The simulated engine."""

    name: str = "sim"
    batching: Batching = Batching.prefill_first
