"""Requests that a real engine has served, beside the same arrivals and lengths on the simulated one.

requests.jsonl has an object per request: input_toks, output_toks, arrival_time, queued_ts, first_token_ts and
last_token_ts, in seconds. arrival_time may have a clock of its own, and may be missing: queued_ts stands for it then,
which is when the engine took the request in, between two steps. Latencies count from there (vLLM's own metrics do).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from llumnix.errors import ConfigError
from llumnix.record import Columns
from llumnix.request import FloatArray, Workload

REQUESTS_JSONL = "requests.jsonl"
_KEYS = ("input_toks", "output_toks", "arrival_time", "queued_ts", "first_token_ts", "last_token_ts")

GROUND_TRUTH = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),  # in order of arrival
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("output_tokens", pa.int64(), nullable=False),
        pa.field("arrival_s", pa.float64(), nullable=False),  # like all times below, from the first arrival on
        pa.field("real_queued_s", pa.float64(), nullable=False),
        pa.field("real_first_token_s", pa.float64(), nullable=False),
        pa.field("real_end_s", pa.float64(), nullable=False),
        pa.field("simulated_queued_s", pa.float64(), nullable=False),
        pa.field("simulated_first_token_s", pa.float64(), nullable=False),
        pa.field("simulated_end_s", pa.float64(), nullable=False),
        pa.field("simulated_preemptions", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Recording:
    """What a real engine was asked and when it answered; a row per request in order of arrival."""

    workload: Workload
    queued_s: FloatArray
    first_token_s: FloatArray
    end_s: FloatArray


def read(path: Path) -> Recording:
    """Read a requests.jsonl. ConfigError names the line, and the key that is missing or makes no sense."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            content = {"arrival_time": content["queued_ts"]} | content
            rows.append(tuple(float(content[key]) for key in _KEYS))
        except KeyError as error:
            raise ConfigError(
                f"{path}, line {number}: no key {error}; each request needs {', '.join(_KEYS)}."
            ) from None
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}, line {number}: not a request ({error}).") from None
        if not (rows[-1][0] >= 1 and rows[-1][1] >= 1 and rows[-1][3] <= rows[-1][4] <= rows[-1][5]):
            raise ConfigError(
                f"{path}, line {number}: needs input_toks and output_toks of at least 1, and queued_ts, "
                f"first_token_ts and last_token_ts in this order."
            )
    if not rows:
        raise ConfigError(f"{path} has no requests.")
    table = np.array(sorted(rows, key=lambda row: row[2]))
    prompt, output, arrival, queued, first, end = table.T
    # The clocks of arrival_time and of the engine differ; the request that was taken in soonest shows by how much.
    offset = (queued - arrival).min() + arrival[0]
    return Recording(
        workload=Workload(
            arrival_s=arrival - arrival[0],
            prompt_tokens=prompt.astype(np.int64),
            output_tokens=output.astype(np.int64),
            priority=np.zeros(len(rows), dtype=np.int64),
            label=path.parent.name,
            rows_in=len(rows),
        ),
        queued_s=queued - offset,
        first_token_s=first - offset,
        end_s=end - offset,
    )


STATISTICS = ("mean", "P50", "P90", "P99")
METRICS = {"latency": "request latency", "ttft": "time to first token", "tpot": "time per output token"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One statistic of one metric, in seconds."""

    metric: str
    statistic: str
    real_s: float
    simulated_s: float

    @property
    def error(self) -> float:
        """How much longer the simulated one is, as a fraction."""
        return self.simulated_s / self.real_s - 1


def latencies(columns: Columns, side: str) -> dict[str, FloatArray]:
    """Per request and metric of METRICS, in seconds; `side` is "real" or "simulated".

    latency: last token - taken in by the engine; ttft: first token - taken in; tpot: (last - first) / (output - 1), of
    requests of more than one token.
    """
    queued_s, first_s, end_s = (
        np.asarray(columns[f"{side}_{name}"]) for name in ("queued_s", "first_token_s", "end_s")
    )
    output = np.asarray(columns["output_tokens"])
    several = output > 1
    return {
        "latency": end_s - queued_s,
        "ttft": first_s - queued_s,
        "tpot": (end_s - first_s)[several] / (output[several] - 1),
    }


def compare(columns: Columns) -> Iterator[Comparison]:
    """Mean, P50, P90 and P99 of every metric, real and simulated. `columns` are those of GROUND_TRUTH."""
    real, simulated = (latencies(columns, side) for side in ("real", "simulated"))
    for metric in METRICS:
        if not len(real[metric]):
            continue
        for statistic in STATISTICS:
            values = [_statistic(side[metric], statistic) for side in (real, simulated)]
            yield Comparison(metric, statistic, *values)


def _statistic(times_s: FloatArray, statistic: str) -> float:
    return float(times_s.mean() if statistic == "mean" else np.percentile(times_s, float(statistic[1:])))
