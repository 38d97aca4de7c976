"""The name of a run: a hash of all that changes its numbers, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from runners.config import NOT_RESULT


def job_config(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides the results: with an SLO only where one is given."""
    no_slo = not any(limit_s is not None for limit_s in resolved["slo"].values())
    return {key: value for key, value in resolved.items() if key not in NOT_RESULT and not (key == "slo" and no_slo)}


def run_id(job: Mapping[str, Any], schema_version: int) -> str:
    """12 hex digits. Values must have the types of the schema, so that qps=2 and qps=2.0 are one run.

    The version of the records is part of it: records that analysis can no longer read do not count as done.
    """
    text = json.dumps([schema_version, job], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
