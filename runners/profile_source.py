"""Where `from=PATH` points: the files of a profile, the requests recorded beside it, and the settings typed with it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llumnix import ground_truth, profile, recorded_limits
from llumnix.engines.sim.dense_line import DenseLine
from llumnix.engines.sim.layers import ATTENTION, DENSE, LayerProfile
from llumnix.errors import ConfigError
from llumnix.number_table import floats, read_table, usable_rows
from llumnix.record import Columns
from llumnix.recorded_limits import Limits
from runners import unfinished_steps
from runners.config import ServeConfig
from runners.gpu_file import Link
from runners.unfinished_steps import UNFINISHED

CONF = Path(__file__).resolve().parent.parent / "conf"
STEPS, ABOUT = "steps.parquet", "profile.json"
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

FOLDERS = 4
"""How many of the innermost folders of a profile may be named after its model."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is fitted, under which name, and what is known of the engine that served the requests beside it."""

    profile: Path  # a table of steps, or the directory with the files of layers
    requests: Path | None
    limits: Limits  # that its time series shows, but for those that were typed
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
        where = _profile_in(path)
        rest = [f"cluster.{word}" if word.partition("=")[0] in SHORT else word for word in words]
        rest = [word for word in rest if not word.startswith("from=")]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            known = [*_named_model(where), *_measured_engine(where)]
            settings = OmegaConf.to_object(compose("serve", [*DEFAULTS, *known, *rest]))
        assert isinstance(settings, ServeConfig)
        name = settings.name if settings.name != "serve" else (path.stem if path.is_file() else path.resolve().name)
        requests = _requests_beside(path, where)
        limits = recorded_limits.read(requests.parent / recorded_limits.TIMESERIES) if requests else Limits()
        if settings.cluster.kv_blocks is not None:
            limits = replace(limits, kv_blocks=None)
        if any(word.startswith("cluster.max_num_seqs=") for word in rest):
            limits = replace(limits, max_num_seqs=None)
        shown = {name: value for name in ("kv_blocks", "max_num_seqs") if (value := getattr(limits, name)) is not None}
        settings = replace(settings, cluster=replace(settings.cluster, **shown))
        return cls(profile=where, requests=requests, limits=limits, name=name, settings=settings)

    @property
    def label(self) -> str:
        """The GPU's name in figures: that of the option it was measured with, by which runs on it are found."""
        return str(_about(self.profile).get("label", self.name))

    def links(self) -> list[Link]:
        """Copies that were measured together with the steps; none where that is not written down."""
        found = _about(self.profile).get("links", [])
        return [Link(**link) for link in found]

    def steps(self) -> tuple[Columns, DenseLine | None, list[str]]:
        """The table of steps, the dense line if that was measured, and what is to be said about them.

        ConfigError says what is missing.
        """
        if self.profile.is_file():
            steps, said = _steps_in(self.profile)
            return steps, None, said
        layers, cluster = self.settings.model.layers, self.settings.cluster
        if not layers:
            raise ConfigError(
                f"model={self.settings.model.name} does not say how many layers it has, which a profile of single "
                f"layers needs: type model.layers=N."
            )
        found = LayerProfile.read(self.profile)
        kv_tokens = None if cluster.kv_blocks is None else cluster.kv_blocks * cluster.block_size_tokens
        said = [f"{name}: {rows:,} rows without a usable number are left out" for name, rows in found.unusable.items()]
        said.append(f"added up from {layers} layers (model={self.settings.model.name}); model.layers=N changes that")
        return found.steps(layers, kv_tokens), found.dense_line(layers), said


def _profile_in(path: Path) -> Path:
    """The table of steps, or the directory of layers, that `path` is or has; ConfigError if it has several."""
    if path.is_file():
        return path
    for name in (UNFINISHED, STEPS):
        if (path / name).exists():
            return path / name
    if (path / DENSE).exists():
        return path
    found = sorted(file.parent for file in path.rglob(DENSE))
    if len(found) > 1:
        raise ConfigError(f"from={path} has {len(found)} profiles: type one of them, such as from={found[0]}.")
    return found[0] if found else path


def _requests_beside(path: Path, where: Path) -> Path | None:
    """The recorded requests: those in the directory of the profile, or else the only ones in `path`."""
    folder = where if where.is_dir() else where.parent
    if (folder / ground_truth.REQUESTS_JSONL).exists():
        return folder / ground_truth.REQUESTS_JSONL
    found = sorted(path.rglob(ground_truth.REQUESTS_JSONL)) if path.is_dir() else []
    if len(found) > 1:
        raise ConfigError(f"from={path} has {len(found)} files {ground_truth.REQUESTS_JSONL}: leave one of them there.")
    return found[0] if found else None


def _named_model(profile_path: Path) -> list[str]:
    """The model that one of the inner folders is named after, as it would be typed: Llama-3.1-8B/bf16/tp1."""
    models = [file.stem for file in (CONF / "model").glob("*.yaml") if re.search(r"\d", file.stem)]  # not "tiny"
    for folder in reversed(profile_path.resolve().parts[-FOLDERS:]):
        found = [model for model in models if _bare(model) in _bare(folder)]
        if found:
            return [f"model={max(found, key=len)}"]
    return []


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _measured_engine(profile_path: Path) -> list[str]:
    """The engine that was measured here, as it would be typed; nothing where that is not written down."""
    about = _about(profile_path)
    if not {"model", "kv_blocks"} <= about.keys():
        return []
    return [f"model={about['model']}", f"cluster.kv_blocks={about['kv_blocks']}"]


def _about(profile_path: Path) -> dict[str, Any]:
    """What profile.json beside the profile says; nothing if there is none."""
    folder = profile_path if profile_path.is_dir() else profile_path.parent
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _steps_in(path: Path) -> tuple[Columns, list[str]]:
    """The columns of PROFILE from a parquet or CSV file."""
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"from={path}: type a directory with {ATTENTION}, or a table of steps, .parquet or .csv.")
    table = unfinished_steps.read(path) if path.name == UNFINISHED else read_table(path)
    *sizes, time = profile.PROFILE.names
    rows = usable_rows(path, table, sizes, time)
    lost = table.num_rows - rows.num_rows
    said = [f"{path.name}: {lost:,} rows without a usable number are left out"] if lost else []
    columns = {name: _numbers(floats(path, rows, name), profile.PROFILE.field(name)) for name in rows.column_names}
    return {name: columns[name] for name in profile.PROFILE.names}, said


def _numbers(column: np.ndarray, field: pa.Field) -> np.ndarray:
    """Whole numbers where the schema has them."""
    return column if pa.types.is_floating(field.type) else np.rint(column).astype(np.int64)
