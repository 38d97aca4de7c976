"""`python -m runners.profile from=PATH`: fit the cost model to a profile that is there, and try it on real requests.

PATH is a directory with a profile of layers (dense.csv, per_sequence.csv, attention.csv), or a table of steps with the
columns of llumnix.profile.PROFILE: a .parquet or .csv file, or a directory with steps.parquet, or with what was
measured until an engine was interrupted. profile.json beside it says which model it was. The fit is written to
outputs/profile/<name>/. requests.jsonl beside the profile is replayed on the simulated engine, and both its times are
written to outputs/ground_truth/<name>/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llumnix import ground_truth, profile, record
from llumnix.cluster.replay import replay
from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.cost import CostModel, StepCost
from llumnix.engines.sim.fit import fit_steps
from llumnix.engines.sim.layers import ATTENTION, read_csv, steps_of_layers
from llumnix.engines.sim.spec import SimEngine
from llumnix.errors import ConfigError
from runners import unfinished_steps
from runners.config import ServeConfig
from runners.gpu_file import gpu_yaml
from runners.unfinished_steps import UNFINISHED

if TYPE_CHECKING:
    from rich.console import RenderableType

CONF = Path(__file__).resolve().parent.parent / "conf"
OUTPUTS, REPLAYS = Path("outputs") / "profile", Path("outputs") / "ground_truth"
STEPS, FIT, GROUND_TRUTH, TIMESERIES = "steps.parquet", "fit.parquet", "ground_truth.parquet", "timeseries.csv"
ABOUT = "profile.json"
NEARLY_FULL_PERCENT = 90.0
"""Below, no request has waited for memory or given way, so that its size does not matter."""
DEFAULTS = [
    "model=llama31_8b",
    "cluster=a10x1",
    "cluster.kv_blocks=null",
    "cluster.watermark_fraction=0",
    "cluster.max_num_seqs=256",
    "cluster.max_num_batched_tokens=2048",
    "engine=sim",
    "engine.batching=chunked",
    "engine.record_steps=true",
]
"""Ahead of what is typed: one instance with the limits that vLLM V1 has by default."""
SHORT = ("kv_blocks", "max_num_seqs", "max_num_batched_tokens", "block_size_tokens")
"""Keys of the cluster group that may be typed without it."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is fitted, and under which name."""

    path: Path
    name: str
    settings: ServeConfig

    @classmethod
    def parse(cls, words: Sequence[str]) -> Source:
        """Take from= out of the words and leave the rest to Hydra; ConfigError for a wrong one."""
        path = Path(next(word for word in words if word.startswith("from=")).partition("=")[2]).expanduser()
        if not path.exists():
            raise ConfigError(
                f"from={path}: no such file or directory; type from=DIR, a profile of layers or of steps."
            )
        rest = [f"cluster.{word}" if word.partition("=")[0] in SHORT else word for word in words]
        rest = [word for word in rest if not word.startswith("from=")]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            settings = OmegaConf.to_object(compose("serve", [*DEFAULTS, *_measured_engine(path), *rest]))
        assert isinstance(settings, ServeConfig)
        name = settings.name if settings.name != "serve" else (path.stem if path.is_file() else path.resolve().name)
        return cls(path=path, name=name, settings=settings)

    @property
    def directory(self) -> Path:
        """Where results go."""
        return OUTPUTS / self.name

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that fit into the KV cache, if its size was given."""
        cluster = self.settings.cluster
        return None if cluster.kv_blocks is None else cluster.kv_blocks * cluster.block_size_tokens

    def steps(self) -> record.Columns:
        """The table of steps; ConfigError says what is missing in it."""
        if (self.path / UNFINISHED).exists():
            return unfinished_steps.read(self.path / UNFINISHED)
        if (self.path / STEPS).exists():
            return _table(self.path / STEPS)
        if self.path.is_file():
            return _table(self.path)
        layers = self.settings.model.layers
        if not layers:
            raise ConfigError(
                f"model={self.settings.model.name} does not say how many layers it has, which a profile of single "
                f"layers needs: type model.layers=N."
            )
        return steps_of_layers(self.path, layers, self.kv_tokens)


def run(words: Sequence[str]) -> Iterator[RenderableType | str]:
    """Fit, write, replay; everything that is to be said, in order."""
    from runners.profile_tables import error_table

    source = Source.parse(words)
    steps = source.steps()
    fit = fit_steps(steps)
    cluster, model = source.settings.cluster, source.settings.model
    directory = source.directory
    (directory / "gpu").mkdir(parents=True, exist_ok=True)
    about = {"model": model.name, "kv_blocks": cluster.kv_blocks, "source": source.path.name}
    record.write_table(directory / STEPS, profile.PROFILE, steps, about)
    fitted = {**steps, "fitted_s": fit.fitted_s}
    record.write_table(directory / FIT, profile.FITTED, fitted, about)
    cost = replace(fit.cost, kv_blocks=cluster.kv_blocks or 0)
    gpu_file = directory / "gpu" / f"{source.name}.yaml"
    with record.replacing(gpu_file) as temporary:
        temporary.write_text(gpu_yaml(source.name, model.name, cost, fit.errors), encoding="utf-8")
    yield f"{source.path}: {len(steps['step_s']):,} steps"
    yield error_table(fit.errors)
    yield f"{gpu_file}"
    yield (
        f"use it: python -m runners.serve --config-dir {directory} gpu={source.name} model={model.name} "
        f"engine.batching=chunked"
    )
    folder = source.path if source.path.is_dir() else source.path.parent
    if (folder / ground_truth.REQUESTS_JSONL).exists():
        yield ""
        yield from _replay(source, folder, cost, about)


def _replay(source: Source, folder: Path, cost: StepCost, about: dict[str, Any]) -> Iterator[RenderableType | str]:
    """Serve the recorded requests on the simulated engine, and say how near that comes."""
    from runners.profile_tables import replay_table

    recording = ground_truth.read(folder / ground_truth.REQUESTS_JSONL)
    cluster, engine = replace(source.settings.cluster, instances=1), source.settings.engine
    if cluster.kv_blocks is None:
        fullest = _fullest(folder / TIMESERIES)
        if fullest is None or fullest > NEARLY_FULL_PERCENT:
            used = "how full it was is not known" if fullest is None else f"it was {fullest:.0f} % full"
            yield f"requests.jsonl is not replayed: the size of the KV cache matters, since {used}; type kv_blocks=N."
            return
        cluster = replace(cluster, kv_blocks=_enough(recording, cluster))
        yield f"The KV cache was never more than {fullest:.0f} % full: replayed with as many blocks as it takes."
    if not isinstance(engine, SimEngine):
        raise ConfigError(f"engine={engine.name} replays nothing: leave it at engine=sim.")
    columns = replay(recording, cluster, engine, CostModel(cost, source.settings.model.kv_bytes_per_token))
    path = REPLAYS / source.name / GROUND_TRUTH
    path.parent.mkdir(parents=True, exist_ok=True)
    record.write_table(path, ground_truth.GROUND_TRUTH, columns, about)
    yield from replay_table(columns)
    yield f"{path}; to draw it: python -m analysis.plot fig=ground_truth"


def _fullest(path: Path) -> float | None:
    """The highest share of the KV cache that was in use, in percent, if a time series tells."""
    if not path.exists():
        return None
    return float(np.max(read_csv(path, ("kv_cache_pct",))["kv_cache_pct"].to_numpy()))


def _enough(recording: ground_truth.Recording, cluster: ClusterSpec) -> int:
    """Blocks for all requests at once."""
    asked = recording.workload
    return int(np.sum(-(-(asked.prompt_tokens + asked.output_tokens) // cluster.block_size_tokens)))


def _measured_engine(path: Path) -> list[str]:
    """The engine that was measured here, as it would be typed; nothing where that is not written down."""
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        return [f"model={about['model']}", f"cluster.kv_blocks={about['kv_blocks']}"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _table(path: Path) -> record.Columns:
    """The columns of PROFILE from a parquet or CSV file."""
    names = tuple(profile.PROFILE.names)
    if path.suffix == ".csv":
        table = read_csv(path, names)
    elif path.suffix == ".parquet":
        table = pq.read_table(path)
        if absent := [name for name in names if name not in table.column_names]:
            raise ConfigError(f"{path} has no column {absent[0]}; a table of steps needs {', '.join(names)}.")
    else:
        raise ConfigError(f"from={path}: type a directory with {ATTENTION}, or a table of steps, .parquet or .csv.")
    columns: dict[str, Any] = {name: np.asarray(table[name].to_numpy()) for name in names}
    return columns
