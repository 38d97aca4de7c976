"""Two fixed workloads on our simulator and, in the same session, on others: NVIDIA DynoSim, and any command.

CPU s is the median over fresh processes of everything but imports: reading the trace, simulating, and for us writing
the records; DynoSim keeps summary statistics only. The step costs differ (ours are fitted to Vidur's tables for
LLaMA-2-7B, DynoSim has its own polynomial, sped up until its mean latency under round robin is near ours), so compare
the work done per CPU second, not the simulated times.

A command is timed as a whole, start-up and children included. It gets the workload through the environment: TRACE (a
csv, not packed; columns as below), INSTANCES, KV_BLOCKS, BLOCK_SIZE, MAX_NUM_SEQS and MAX_NUM_BATCHED_TOKENS. Its
mean latency is not known here.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from analysis import words
from benchmarks import measure

EXAMPLES = """examples:
  python -m benchmarks.peers bench=DIR                  DIR holds mm_q42.csv.gz (W1) and conv_q60.csv.gz (W2), columns
                                                        arrived_at (s), num_prefill_tokens, num_decode_tokens
  pip install --no-deps --target PEER ai-dynamo-runtime==1.6.1
  python -m benchmarks.peers bench=DIR dynosim=PEER     the same beside DynoSim
  python -m benchmarks.peers bench=DIR 'command=./replay $TRACE --replicas $INSTANCES'
                                                        the same beside another simulator, run by the shell
  python -m benchmarks.peers bench=DIR runs=5           fresh processes per contender (default 3)
"""

INSTANCES = 16
MOONCAKE_BLOCK = 512
"""Prompt tokens per hash id of a trace in Mooncake's format."""
LIMITS = {"max_num_seqs": 128, "max_num_batched_tokens": 4096}


@dataclass(frozen=True, slots=True)
class Case:
    """A workload: its file, the KV blocks of an instance, and how much faster than its own default DynoSim's GPU is."""

    name: str
    file: str
    kv_blocks: int
    dynosim_speedup: float


CASES = [Case("W1", "mm_q42.csv.gz", 851, 2.2), Case("W2", "conv_q60.csv.gz", 6900, 0.75)]

# Vidur's tables for LLaMA-2-7B. Copies between instances keep the costs of conf/gpu/a10.yaml.
COSTS = {
    "step_gap_ms": 0,
    "decode_base_ms": 9.08,
    "decode_per_request_ms": 0.0684,
    "decode_per_token_ms": 3.35e-4,
    "prefill_floor_ms": 0,
    "prefill_per_request_ms": 0,
    "prefill_base_ms": 6.97,
    "prefill_per_token_ms": 0.0564,
    "prefill_per_token2_ms": 4.05e-6,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One contender on one workload."""

    cpu_s: float
    peak_mib: float
    requests: int
    output_tokens: int
    mean_latency_s: float | None


def ours(case: Case, directory: Path, scheduler: str) -> Row:
    """Our simulator, through the same configuration as the command line."""
    done = measure.serve(
        [
            f"scheduler={scheduler}",
            "trace=file",
            f"trace.path='{directory / case.file}'",
            "arrivals=recorded",
            "qps=null",
            f"cluster.instances={INSTANCES}",
            f"cluster.kv_blocks={case.kv_blocks}",
            *(f"cluster.{key}={value}" for key, value in LIMITS.items()),
            *(f"gpu.costs.llama_7b.{key}={value}" for key, value in COSTS.items()),
        ]
    )
    return Row(done.cpu_s, done.peak_mib, done.requests, done.output_tokens, done.mean_latency_s)


def dynosim(case: Case, directory: Path, installed: Path) -> Row:
    """DynoSim's offline replay, round robin, prefix caching off."""
    sys.path.insert(0, str(installed))
    replay: Any = importlib.import_module("dynamo._core").run_mocker_trace_replay
    limits = {"num_gpu_blocks": case.kv_blocks, "block_size": 16, **LIMITS}
    engine = {**limits, "enable_prefix_caching": False, "speedup_ratio": case.dynosim_speedup}
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "trace.jsonl"
        _as_mooncake(directory / case.file, trace)
        started = time.process_time()
        done = replay(
            [str(trace)],
            extra_engine_args={"engine": engine, "num_gpu_blocks_is_explicit": True},
            num_workers=INSTANCES,
            router_mode="round_robin",
            trace_block_size=MOONCAKE_BLOCK,
        ).summary
        cpu_s = time.process_time() - started
    return Row(
        cpu_s,
        measure.peak_mib(),
        done["completed_requests"],
        done["total_output_tokens"],
        done["mean_e2e_latency_ms"] / 1000,
    )


def command(case: Case, directory: Path, line: str) -> Row:
    """Another simulator, run by the shell; the program ends with its last words if it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "trace.csv"
        with gzip.open(directory / case.file, "rt", newline="") as packed:
            trace.write_text(packed.read())
        with trace.open(newline="") as rows:
            outputs = [int(row["num_decode_tokens"]) for row in csv.DictReader(rows)]
        limits = {"INSTANCES": INSTANCES, "KV_BLOCKS": case.kv_blocks, "BLOCK_SIZE": 16}
        limits |= {key.upper(): value for key, value in LIMITS.items()}
        environment = {**os.environ, "TRACE": str(trace), **{key: str(value) for key, value in limits.items()}}
        done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words.stop(f"'{line}' ended with code {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Row(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, len(outputs), sum(outputs), None)


def _as_mooncake(source: Path, target: Path) -> None:
    """Write the workload in the format that DynoSim reads, every prompt block unique."""
    block_ids = itertools.count()
    with gzip.open(source, "rt", newline="") as rows, target.open("w") as out:
        for row in csv.DictReader(rows):
            prompt_tokens = int(row["num_prefill_tokens"])
            entry = {
                "timestamp": 1000 * float(row["arrived_at"]),
                "input_length": prompt_tokens,
                "output_length": int(row["num_decode_tokens"]),
                "hash_ids": list(itertools.islice(block_ids, -(-prompt_tokens // MOONCAKE_BLOCK))),
            }
            out.write(json.dumps(entry) + "\n")


def main() -> None:
    """Measure every contender on both workloads and print one table."""
    asked = words.parse(None, "benchmarks.peers", ["bench", "dynosim", "command", "runs"], __doc__ or "", EXAMPLES)
    directory, runs = Path(asked.get("bench", "../shared/bench")), measure.whole_number("runs", asked.get("runs", "3"))
    if missing := [case.file for case in CASES if not (directory / case.file).is_file()]:
        words.stop(f"{directory} has no {' and no '.join(missing)}; say where they are with bench=DIR.")

    contenders: dict[str, tuple[Any, ...]] = {
        "ours, round robin": (ours, "round_robin"),
        "ours, least requests": (ours, "least_requests"),
        "ours, Llumnix": (ours, "llumnix"),
    }
    if "dynosim" in asked:
        contenders["DynoSim, round robin"] = (dynosim, Path(asked["dynosim"]))
    if "command" in asked:
        contenders["command"] = (command, asked["command"])

    table = Table("workload", "simulator")
    for heading in ("CPU s", "range", "requests/s", "M tokens/s", "peak MiB", "mean latency s", "CPU / DynoSim"):
        table.add_column(heading, justify="right")
    for case in CASES:
        rows = {
            name: [measure.in_own_process(function, case, directory, argument) for _ in range(runs)]
            for name, (function, argument) in contenders.items()
        }
        peer = rows.get("DynoSim, round robin")
        for name, measured in rows.items():
            times = [row.cpu_s for row in measured]
            cpu_s, row = statistics.median(times), measured[0]
            table.add_row(
                case.name,
                name,
                f"{cpu_s:.2f}",
                f"{min(times):.2f}-{max(times):.2f}",
                f"{row.requests / cpu_s:,.0f}",
                f"{row.output_tokens / cpu_s / 1e6:.2f}",
                f"{max(row.peak_mib for row in measured):.0f}",
                "-" if row.mean_latency_s is None else f"{row.mean_latency_s:.3f}",
                f"{cpu_s / statistics.median(r.cpu_s for r in peer):.2f}" if peer else "-",
            )
    words.console().print(table)


if __name__ == "__main__":
    main()
