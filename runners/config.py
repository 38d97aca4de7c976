"""The schema of conf/serve.yaml: what can be configured, and which dataclass checks each group.

Values are checked where they belong, in the dataclasses of llumnix; here only the keys of the root.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from llumnix import arrivals, traces
from llumnix.cluster.real.spec import RayOptions, RealEngine
from llumnix.cluster.spec import ClusterSpec
from llumnix.config import Gpu, Model
from llumnix.engines.sim.spec import SimEngine
from llumnix.engines.spec import EngineSpec
from llumnix.engines.stub.spec import StubEngine
from llumnix.errors import ConfigError
from llumnix.metrics import Slo
from llumnix.policies.spec import Scheduler

NOT_RESULT = frozenset({"name", "force", "dry_run", "fail_fast", "exclude", "ray"})
"""Root keys that steer a command but change no number of a run; they stay out of the run id."""


@dataclass(kw_only=True, slots=True)
class ServeConfig:
    """One run: a workload on a cluster under a scheduler.

    `name` is the directory under outputs/. `seed` draws new lengths and arrivals; `repeat` keeps them and moves each
    arrival by a few milliseconds. `qps` may be null for traces served at their recorded times. `slo` is what the
    summary is to judge requests by, and nothing that they are served by. `exclude` lists combinations of options and
    values that a figure does not have.
    """

    name: str = "serve"
    qps: float | None = MISSING
    cv: float = 1.0
    seed: int = 0
    repeat: int = 0
    num_requests: int = 10_000
    high_priority_fraction: float = 0.0
    model: Model = MISSING
    gpu: Gpu = MISSING
    cluster: ClusterSpec = MISSING
    trace: traces.Trace = MISSING
    arrivals: arrivals.Arrivals = MISSING
    scheduler: Scheduler = MISSING
    engine: EngineSpec = MISSING
    slo: Slo = field(default_factory=Slo)
    ray: RayOptions = field(default_factory=RayOptions)
    force: bool = False
    dry_run: bool = False
    fail_fast: bool = False
    exclude: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ConfigError(f"name must be a plain directory name, got '{self.name}': type for example name=serve.")
        if self.qps is not None and not 0 < self.qps < math.inf:
            raise ConfigError(f"qps must be a positive number of requests per second, got {self.qps}.")
        if not 0 < self.cv < math.inf:
            raise ConfigError(f"cv must be a positive number, got {self.cv}.")
        if self.num_requests < 1:
            raise ConfigError(f"num_requests must be at least 1, got {self.num_requests}.")
        if self.seed < 0 or self.repeat < 0:
            raise ConfigError(f"seed and repeat must not be negative, got seed={self.seed} repeat={self.repeat}.")
        if not 0 <= self.high_priority_fraction <= 1:
            raise ConfigError(f"high_priority_fraction must be in [0, 1], got {self.high_priority_fraction}.")


def times(a: float, b: float) -> float:
    """${times:a,b} in a configuration: for a size that grows with another. Whole numbers stay whole: 2 * 1.5 is 3."""
    product = a * b
    return int(product) if product == int(product) else product


def register() -> None:
    """Make the schemas known to Hydra.

    ServeConfig holds those of all groups but the ones whose options differ in kind; each of these options names its own
    schema, schema/<group>/<kind>, in its defaults.
    """
    OmegaConf.register_new_resolver("times", times, replace=True)
    store = ConfigStore.instance().store
    store("serve_schema", ServeConfig)
    store("sim", SimEngine, group="schema/engine")
    store("vllm", RealEngine, group="schema/engine")
    store("stub", StubEngine, group="schema/engine")
    store("generated", traces.GeneratedTrace, group="schema/trace")
    store("fixed", traces.FixedTrace, group="schema/trace")
    store("quantile", traces.QuantileTrace, group="schema/trace")
    store("file", traces.FileTrace, group="schema/trace")
    store("superposed", traces.SuperposedTrace, group="schema/trace")
    store("poisson", arrivals.Poisson, group="schema/arrivals")
    store("gamma", arrivals.Gamma, group="schema/arrivals")
    store("uniform", arrivals.Uniform, group="schema/arrivals")
    store("burst", arrivals.Burst, group="schema/arrivals")
    store("recorded", arrivals.Recorded, group="schema/arrivals")
