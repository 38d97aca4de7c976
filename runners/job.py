"""One job: skip what is done, run what is not, keep the result or the reason why there is none.

A job never raises because of what it runs, so that no launcher stops a sweep on its account: the outcome says it.
What is run is in perform(); files and locks are in runners.rundir.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llumnix.cluster.real.spec import RealEngine
from llumnix.engines.sim.spec import SimEngine
from llumnix.engines.stub.spec import StubEngine
from llumnix.errors import ConfigError, LlumnixError
from runners import interrupt, provenance
from runners.command_line import one_sentence
from runners.config import ServeConfig
from runners.outcome import Outcome, State
from runners.run_id import job_config, run_id
from runners.sweep import SweepLog, chosen, is_excluded

if TYPE_CHECKING:
    from llumnix.cluster.real.warm import WarmEngines
    from llumnix.cluster.result import RunResult
    from llumnix.metrics import Slo
    from llumnix.request import Workload
    from runners.rundir import RunDirectory

OUTPUTS = Path("outputs")
Progress = Callable[[int, int], None]


def job_of_sweep(cfg: DictConfig) -> None:
    """Hydra's task function of a sweep, in whatever process: run the job and add its outcome to the sweep's log."""
    if multiprocessing.parent_process() is not None:
        # A worker of joblib's pool: Ctrl-C is for the process that started it, which then ends it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = SweepLog.of_this_job()
    if log is None:
        raise ConfigError(
            "hydra.sweeper must be FigureSweeper, as in conf/serve.yaml: leave out hydra.sweeper._target_."
        )
    if cfg.fail_fast and log.any_failed():
        outcome = Outcome(state=State.STOPPED, settings=_settings(cfg))
    else:
        outcome = run(cfg, root=log.experiment_directory, git=log.plan()["git"])
    log.append(outcome.to_json())


def run(cfg: DictConfig, *, root: Path, git: Mapping[str, Any] | None, progress: Progress | None = None) -> Outcome:
    """Run the composed job `cfg` into the experiment directory `root`, unless it is done, excluded or a dry run."""
    started = time.perf_counter()
    hydra = HydraConfig.get()
    exclude: Any = OmegaConf.to_container(cfg.exclude)
    if is_excluded(chosen(_overrides(), hydra.runtime.choices), exclude):
        return Outcome(state=State.EXCLUDED, settings=_settings(cfg))
    try:
        with interrupt.not_replaced():
            config = OmegaConf.to_object(cfg)
            resolved: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    except (LlumnixError, OmegaConfBaseException, AttributeError) as error:
        return Outcome(state=State.INVALID, settings=_settings(cfg), message=one_sentence(error))
    assert isinstance(config, ServeConfig)
    asked = {
        "name": config.name,
        "config": job_config(resolved),
        "overrides": _overrides(),
        "choices": {group: option for group, option in hydra.runtime.choices.items() if "/" not in group},
        "git": git,
    }
    outcome = _run(config, asked, root, progress)
    outcome.settings = _settings(cfg)
    outcome.wall_s = time.perf_counter() - started
    return outcome


def perform(config: ServeConfig, progress: Progress | None) -> tuple[Workload, RunResult]:
    """Make the workload and serve it, in the world that the engine belongs to."""
    from llumnix import workload

    requests = workload.build(
        config.trace,
        config.arrivals,
        qps=config.qps,
        cv=config.cv,
        seed=config.seed,
        repeat=config.repeat,
        num_requests=config.num_requests,
        high_priority_fraction=config.high_priority_fraction,
    )
    match config.engine:
        case SimEngine():
            return requests, _simulate(config, config.engine, requests, progress)
        case RealEngine():
            return requests, _serve(config, config.engine, requests, progress)
        case StubEngine():
            return requests, _serve_stub(config, config.engine, requests, progress)
        case other:
            raise ConfigError(f"engine={other.name} is of no known kind: type engine=sim, engine=vllm or engine=stub.")


def _simulate(config: ServeConfig, engine: SimEngine, requests: Workload, progress: Progress | None) -> RunResult:
    from llumnix.cluster.virtual import simulate
    from llumnix.engines.sim.cost import CostModel
    from llumnix.workload import dispatch_choices

    cost = CostModel(config.gpu.cost_of(config.model), config.model.kv_bytes_per_token)
    uniform = dispatch_choices(config.seed, config.repeat)
    return simulate(requests, config.cluster, engine, cost, config.scheduler, uniform=uniform, progress=progress)


def _serve(config: ServeConfig, engine: RealEngine, requests: Workload, progress: Progress | None) -> RunResult:
    from llumnix.cluster.real.serve import serve

    return serve(
        requests,
        config.cluster,
        engine,
        config.model,
        config.gpu,
        config.scheduler,
        config.ray,
        warm=_warm_engines(),
        seed=config.seed,
        progress=progress,
    )


@cache
def _warm_engines() -> WarmEngines:
    """Engines that one job of this process leaves to the next."""
    from llumnix.cluster.real.warm import WarmEngines

    engines = WarmEngines()
    atexit.register(engines.close)
    return engines


def _serve_stub(config: ServeConfig, engine: StubEngine, requests: Workload, progress: Progress | None) -> RunResult:
    from llumnix.cluster.stub.run import serve_stub
    from llumnix.engines.sim.cost import CostModel

    cost = CostModel(config.gpu.cost_of(config.model), config.model.kv_bytes_per_token)
    return serve_stub(requests, config.cluster, engine, cost, config.scheduler, progress=progress)


def _run(config: ServeConfig, asked: dict[str, Any], root: Path, progress: Progress | None) -> Outcome:
    from llumnix.record import SCHEMA_VERSION
    from runners.rundir import OnDisk, RunDirectory

    directory = RunDirectory(root, run_id(asked["config"], SCHEMA_VERSION))
    asked = {"run_id": directory.path.name, "schema_version": SCHEMA_VERSION, **asked}
    state = directory.state()
    if config.dry_run:
        planned = {OnDisk.NOTHING: State.PLANNED, OnDisk.FAILED: State.RETRY, OnDisk.DONE: State.SKIPPED}[state]
        redone = planned is State.SKIPPED and config.force
        return Outcome(state=State.PLANNED if redone else planned, directory=shown(directory.path))
    if state is OnDisk.DONE and not config.force:
        return _done_already(directory, asked["git"])
    try:
        with directory.locked(on_wait=lambda: _say_waiting(directory.path)):
            if directory.state() is OnDisk.DONE and not config.force:
                return _done_already(directory, asked["git"])
            return _run_locked(config, asked, directory, progress)
    except OSError as error:
        message = f"cannot write results ({one_sentence(error)})"
        return Outcome(state=State.FAILED, directory=shown(directory.path), message=message)


def _run_locked(
    config: ServeConfig, asked: dict[str, Any], directory: RunDirectory, progress: Progress | None
) -> Outcome:
    from llumnix.record import write_json
    from runners.rundir import FAILURE, RUN, OnDisk

    outcome = Outcome(state=State.DONE, directory=shown(directory.path))
    asked = asked | {"started_at": datetime.now(UTC).isoformat(timespec="seconds"), "host": provenance.host()}
    started = time.perf_counter()
    try:
        with interrupt.not_replaced():
            requests, result = perform(config, progress)
            with directory.publishing() as part:
                _write(part, asked, requests, result, config.slo, started)
    except ConfigError as error:
        outcome.state, outcome.message, outcome.directory = State.INVALID, one_sentence(error), ""
    except Exception as error:
        outcome.state, outcome.message = State.FAILED, one_sentence(error)
        if isinstance(error, OSError):
            outcome.message = f"cannot write results ({outcome.message})"
        asked["wall_s"] = time.perf_counter() - started
        failure = {"error": outcome.message, "traceback": traceback.format_exc(), **asked}
        with contextlib.suppress(OSError):  # a full disk has no room for the reason either; the outcome still says it
            directory.path.mkdir(parents=True, exist_ok=True)
            if directory.state() is not OnDisk.DONE:
                write_json(directory.path / RUN, asked)
            write_json(directory.path / FAILURE, failure)
    return outcome


def _write(part: Path, asked: dict[str, Any], requests: Workload, result: RunResult, slo: Slo, started: float) -> None:
    """Write all files of a finished run. What is inside the parquet files depends on the configuration alone."""
    from llumnix import metrics, record
    from runners.rundir import RUN, SUMMARY

    versions = provenance.versions()
    same_for_all = {
        "run_id": asked["run_id"],
        "schema_version": asked["schema_version"],
        "config": asked["config"],
        "versions": versions,
        "trace_sha256": requests.sha256,
    }
    record.write_table(part / "requests.parquet", record.REQUESTS, result.requests, same_for_all)
    record.write_table(part / "events.parquet", record.EVENTS, result.events, same_for_all)
    record.write_table(part / "instances.parquet", record.INSTANCES, result.instances, same_for_all)
    if result.steps is not None:
        record.write_table(part / "steps.parquet", record.STEPS, result.steps, same_for_all)
    summary = metrics.summarize(result.requests, slo) | result.scalars
    if result.sizes is not None:
        summary |= metrics.resource_cost(result.sizes)
    record.write_json(part / SUMMARY, summary)
    workload = {
        "label": requests.label,
        "synthetic": requests.synthetic,
        "requests": len(requests),
        "rows_in": requests.rows_in,
        "dropped": requests.dropped,
        "sha256": requests.sha256,
    }
    ended = {"workload": workload, "versions": versions, "counters": result.counters}
    ended |= {"wall_s": time.perf_counter() - started}
    record.write_json(part / RUN, asked | ended)


def _done_already(directory: RunDirectory, git: Mapping[str, Any] | None) -> Outcome:
    before = directory.run_json().get("git") or {}
    other = git is not None and before.get("commit") not in (None, git["commit"])
    return Outcome(state=State.SKIPPED, directory=shown(directory.path), other_code=other)


def _settings(cfg: DictConfig) -> dict[str, str]:
    """The job's overrides as people would read them: chosen options by name, interpolations by value."""
    choices = HydraConfig.get().runtime.choices
    settings = {}
    for override in _overrides():
        key, _, value = override.lstrip("+").partition("=")
        if key not in choices:
            with contextlib.suppress(OmegaConfBaseException):
                value = str(OmegaConf.select(cfg, key))
        settings[key] = value
    return settings


def shown(path: Path) -> str:
    """Relative to the current directory if it is inside."""
    return os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)


def _overrides() -> list[str]:
    """The job's overrides as given; an interpolation in them need not resolve."""
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(overrides)


def _say_waiting(path: Path) -> None:
    sys.stderr.write(f"Another process is at {shown(path)}; waiting for it.\n")
