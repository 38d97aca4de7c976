"""One simulated run under the clock, in a process of its own. The scripts beside this file say what is run."""

from __future__ import annotations

import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from analysis import words
from llumnix import metrics, record
from runners.config import register
from runners.job import perform

CONF = Path(__file__).resolve().parents[1] / "conf"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measured:
    """CPU seconds of the parts of a run, imports and configuration left out, and what was simulated in them."""

    serve_s: float
    write_s: float
    peak_mib: float
    requests: int
    output_tokens: int
    mean_latency_s: float
    migrations: int
    preemptions: int
    events: int

    @property
    def cpu_s(self) -> float:
        """All of the run: making or reading the workload, serving it, summing up and writing its records."""
        return self.serve_s + self.write_s


def serve(overrides: list[str]) -> Measured:
    """Run the command line's job with these overrides, records included, into a directory that is thrown away."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        conf: Any = OmegaConf.to_object(compose("serve", overrides))
    started = time.process_time()
    asked, result = perform(conf, None)
    served = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        for name, schema, columns in (
            ("requests", record.REQUESTS, result.requests),
            ("events", record.EVENTS, result.events),
            ("instances", record.INSTANCES, result.instances),
        ):
            record.write_table(Path(out) / f"{name}.parquet", schema, columns, {})
        record.write_json(Path(out) / "summary.json", metrics.summarize(result.requests))
    written = time.process_time()
    rows = result.requests
    return Measured(
        serve_s=served - started,
        write_s=written - served,
        peak_mib=peak_mib(),
        requests=len(asked),
        output_tokens=int(sum(rows["output_tokens"])),
        mean_latency_s=float((rows["end_s"] - rows["arrival_s"]).mean()),
        migrations=int(sum(rows["migrations"])),
        preemptions=int(sum(rows["preemptions"])),
        events=len(asked) + sum(result.counters.values()),
    )


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def whole_number(key: str, text: str) -> int:
    """A number of at least 1, as the user typed it for `key`."""
    if not text.isdecimal() or int(text) < 1:
        words.stop(f"{key} must be a whole number of at least 1, got '{text}'.")
    return int(text)


def positive_number(key: str, text: str) -> float:
    """A number above 0, as the user typed it for `key`."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        words.stop(f"{key} must be a positive number, got '{text}'.")
    return number


def in_own_process(function: Callable[..., T], *arguments: object) -> T:
    """Call in a fresh interpreter, so that memory and warm-up of one measurement do not reach the next."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
