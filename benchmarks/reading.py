"""How long results of a large sweep take to read: the list of runs, an SLO over all their requests, and their requests.

One run is simulated and its directory copied under other ids and seeds into a directory that is thrown away, so the
files are as large as those of a real sweep. CPU s and peak memory, in a process of its own each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from analysis import load, words
from analysis import runs as listing
from benchmarks import measure
from llumnix import metrics
from runners.rundir import RUN

EXAMPLES = """examples:
  python -m benchmarks.reading                          1,000 runs of 10,000 requests
  python -m benchmarks.reading runs=100 requests=1000   fewer and smaller ones
"""

ROOT = Path(__file__).resolve().parents[1]
SWEEP = "sweep"
SLO = metrics.Slo(ttft_s=2, tpot_s=0.1)


@dataclass(frozen=True, slots=True)
class Read:
    """What reading took, and how many rows came of it."""

    cpu_s: float
    peak_mib: float
    rows: int


def list_runs(outputs: Path) -> Read:
    """Every run with its configuration and headline numbers: run.json and summary.json of each."""
    started = time.process_time()
    found = load.runs(outputs, SWEEP)
    return Read(time.process_time() - started, measure.peak_mib(), len(found))


def judge(outputs: Path) -> Read:
    """The same, and how well each run meets an SLO that it was not run with: six columns of its requests."""
    started = time.process_time()
    judged = listing.judged(load.runs(outputs, SWEEP), SLO)
    return Read(time.process_time() - started, measure.peak_mib(), len(judged))


def gather(outputs: Path) -> Read:
    """Two columns of the requests of all runs in one frame."""
    started = time.process_time()
    found = load.runs(outputs, SWEEP)
    rows = load.requests(list(found["directory"]), ["arrival_s", "end_s"])
    return Read(time.process_time() - started, measure.peak_mib(), len(rows))


def make(outputs: Path, runs: int, requests: int) -> None:
    """Simulate one run and copy it; every copy is of another seed."""
    command = [sys.executable, "-m", "runners.serve", f"name={SWEEP}", f"num_requests={requests}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=outputs.parent, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words.stop(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    [original] = (outputs / SWEEP / "runs").glob("[!.]*")
    about = json.loads((original / RUN).read_text())
    for seed in range(1, runs):
        copy = original.with_name(f"{seed:012x}")
        shutil.copytree(original, copy)
        about["run_id"], about["config"]["seed"] = copy.name, seed
        (copy / RUN).write_text(json.dumps(about))


def main() -> None:
    """Make the runs, read them in three ways and print one table."""
    asked = words.parse(None, "benchmarks.reading", ["runs", "requests"], __doc__ or "", EXAMPLES)
    runs, requests = (
        measure.whole_number(key, asked.get(key, usual)) for key, usual in (("runs", "1000"), ("requests", "10000"))
    )
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    table = Table(f"{runs:,} runs of {requests:,} requests")
    for heading in ("CPU s", "peak MiB", "rows"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        outputs = Path(scratch) / "outputs"
        sys.stderr.write("making the runs ...\n")
        make(outputs, runs, requests)
        for what, function in (
            ("list of runs", list_runs),
            ("list of runs, judged by an SLO", judge),
            ("two columns of all requests", gather),
        ):
            read = measure.in_own_process(function, outputs)
            table.add_row(what, f"{read.cpu_s:.2f}", f"{read.peak_mib:.0f}", f"{read.rows:,}")
    words.console().print(table)


if __name__ == "__main__":
    main()
