"""Options of the real system: schema of conf/engine/vllm.yaml and of the root key `ray`. No Ray or vLLM is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from llumnix.cluster.real.transport import NAMES
from llumnix.engines.spec import EngineSpec
from llumnix.errors import ConfigError


class OnLoss(StrEnum):
    """What becomes of a request whose instance died: started again from what was delivered, or failed."""

    replay = "replay"
    fail = "fail"


class Weights(StrEnum):
    """Where weights come from: a tiny model written on the spot, random ones of the model's shape, or model_path."""

    tiny = "tiny"
    dummy = "dummy"
    path = "path"


@dataclass(kw_only=True, slots=True)
class Limits:
    """Time limits on every wait between processes, in seconds.

    control_s: a message that only touches state between two steps. copy_s: a message with KV blocks. migration_s: a
    whole migration. poll_s: how long an instance holds back the answer to a poll when it has nothing to say; an answer
    later than poll_s + control_s means a hang, as does a step longer than step_s. reservation_s: an arriving request
    without news for so long is cancelled. start_s: an engine is up after this time, also after a restart.
    """

    control_s: float = 5.0
    copy_s: float = 20.0
    migration_s: float = 60.0
    poll_s: float = 0.5
    step_s: float = 60.0
    reservation_s: float = 30.0
    start_s: float = 300.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"engine.limits.{name} must be a positive number of seconds, got {getattr(self, name)}."
                )


@dataclass(kw_only=True, slots=True)
class RayOptions:
    """`address` of a running Ray cluster (auto, host:port, ray://host:port); None starts one on this machine."""

    address: str | None = None


@dataclass(kw_only=True, slots=True)
class RealEngine(EngineSpec):
    """One vLLM engine per instance.

    `model_path` is a directory or a name that vLLM loads, with weights=path. `num_cpus` and `num_gpus` are what Ray
    sets aside for an instance; its tensor-parallel ranks share them. `threads` limits the threads of each process on
    CPUs. `transports` names the only ones that KV blocks may travel by; empty leaves the choice to each migration.
    `arguments` are further arguments of vLLM's EngineArgs.
    """

    weights: Weights = Weights.dummy
    model_path: str | None = None
    dtype: str = "auto"
    max_model_tokens: int | None = None
    tensor_parallel: int = 1
    prefix_caching: bool = False
    migration: bool = True
    num_cpus: float = 1.0
    num_gpus: float = 1.0
    threads: int | None = None
    on_loss: OnLoss = OnLoss.replay
    limits: Limits = field(default_factory=Limits)
    transports: list[str] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        EngineSpec.__post_init__(self)
        if (self.weights is Weights.path) != (self.model_path is not None):
            raise ConfigError(
                f"engine.weights={self.weights} with engine.model_path={self.model_path}: a path needs "
                "engine.weights=path, and the other weights have none."
            )
        if unknown := set(self.transports) - NAMES:
            raise ConfigError(
                f"engine.transports has no {', '.join(sorted(unknown))}; choose among: {', '.join(sorted(NAMES))}."
            )
