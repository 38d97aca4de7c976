"""The name of a run: a hash of all that changes its numbers, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from runners.config import NOT_RESULT

CHUNKED_ONLY = frozenset({"async_scheduling", "prefix_caching"})
"""Options of the simulated engine that mean nothing while it batches prompts first."""
IF_MEASURED = frozenset({"prefill_per_context_ms", "dense_tokens", "dense_ms", "mixed"})
"""Terms of a cost model that only profiles have."""


def job_config(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides the results.

    An SLO only where one is given, and other options only where they mean something, so that what was run before there
    were such options keeps its name.
    """
    job = {key: value for key, value in resolved.items() if key not in NOT_RESULT}
    if "slo" in job and not any(limit_s is not None for limit_s in job["slo"].values()):
        del job["slo"]
    if job.get("engine", {}).get("batching") == "prefill_first":
        job["engine"] = {key: value for key, value in job["engine"].items() if key not in CHUNKED_ONLY}
    if "model" in job:
        job["model"] = {key: value for key, value in job["model"].items() if key != "layers"}
    if "gpu" in job:
        job["gpu"] = job["gpu"] | {"costs": {model: _measured(cost) for model, cost in job["gpu"]["costs"].items()}}
    return job


def run_id(job: Mapping[str, Any], schema_version: int) -> str:
    """12 hex digits. Values must have the types of the schema, so that qps=2 and qps=2.0 are one run.

    The version of the records is part of it: records that analysis can no longer read do not count as done.
    """
    text = json.dumps([schema_version, job], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _measured(cost: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cost.items() if value or key not in IF_MEASURED}
