"""Pairs of runs of the same requests at the same times, with migration (Llumnix) and without (INFaaS++).

What decides whether moving pays is told in numbers that depend on no GPU and no model: how full the KV memory is
without migration, and how many requests of mean length an instance has room for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis import load

WITH, WITHOUT = "llumnix", "infaas"
SAME = [
    "workload.sha256", "engine", "gpu", "model", "config.cluster.instances", "config.cluster.kv_blocks",
    "config.cluster.max_num_seqs", "config.scheduler.load_reports",
]  # fmt: skip
"""What the two runs of a pair have in common; kv_blocks must be given."""
COLUMNS = [
    "arrival_s", "first_token_s", "end_s", "prompt_tokens", "output_tokens", "preemption_loss_s", "status"
]  # fmt: skip


def of(runs: pd.DataFrame) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(with migration, without) of each workload and system that has both; of several runs the latest."""
    for _, same in runs.sort_values("started_at").groupby(SAME):
        found = {run["config.scheduler.name"]: run for run in load.rows(same)}
        if {WITH, WITHOUT} <= set(found):
            yield found[WITH], found[WITHOUT]


def requests(run: dict[str, Any]) -> pd.DataFrame:
    """The rows of a run that the functions below ask for."""
    return load.requests([run["directory"]], COLUMNS)


def room(run: dict[str, Any], requests: pd.DataFrame) -> float:
    """How many requests of mean length fit into the KV memory of one instance."""
    return _kv_tokens(run) / float(_lengths(requests).mean())


def length_cv(requests: pd.DataFrame) -> float:
    """Coefficient of variation of lengths, prompt and output together: 0 where all are equal."""
    lengths = _lengths(requests)
    return float(lengths.std(ddof=0) / lengths.mean())


def usage(run: dict[str, Any], requests: pd.DataFrame) -> float:
    """Mean share of all instances' KV memory in use while the second half of the requests arrived.

    From what requests had, since not every record has samples of the instances: prompt and tokens so far, from the
    first token to the last, less the time that preemptions took. The first half of the arrivals fills the memory.
    """
    start, end = requests["arrival_s"].median(), requests["arrival_s"].max()
    done = requests[requests["status"] == "finished"]
    decoding_s = (done["end_s"] - done["first_token_s"]).clip(lower=1e-9)
    begins, ends = done["first_token_s"].clip(start, end), done["end_s"].clip(start, end)
    at_middle = ((begins + ends) / 2 - done["first_token_s"]) / decoding_s
    tokens = done["prompt_tokens"] + done["output_tokens"] * at_middle
    held = (1 - done["preemption_loss_s"] / decoding_s).clip(lower=0) * (ends - begins) * tokens
    return float(held.sum() / (run["config.cluster.instances"] * _kv_tokens(run) * (end - start)))


def wait_share(requests: pd.DataFrame) -> float:
    """Mean time to the first token, as a share of the time over which requests arrived."""
    wait_s = requests["first_token_s"] - requests["arrival_s"]
    return float(wait_s.mean() / np.ptp(requests["arrival_s"]))


def _lengths(requests: pd.DataFrame) -> pd.Series:
    return requests["prompt_tokens"] + requests["output_tokens"]


def _kv_tokens(run: dict[str, Any]) -> int:
    return int(run["config.cluster.kv_blocks"] * run["config.cluster.block_size_tokens"])
