"""Replays recorded requests of a real engine on a simulated one: same arrivals, same lengths."""

from __future__ import annotations

import numpy as np

from llumnix.cluster.spec import ClusterSpec
from llumnix.cluster.virtual import simulate
from llumnix.engines.sim.cost import CostModel
from llumnix.engines.sim.spec import SimEngine
from llumnix.errors import ConfigError
from llumnix.ground_truth import Recording
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.spec import Scheduler
from llumnix.record import Columns
from llumnix.request import FloatArray


def replay(recording: Recording, cluster: ClusterSpec, engine: SimEngine, cost: CostModel) -> Columns:
    """Serve the recorded requests on one simulated instance; the columns of GROUND_TRUTH.

    Raises ConfigError if a request needs more KV memory than the instance has.
    """
    asked = recording.workload
    result = simulate(asked, cluster, engine, cost, Scheduler(name="first", dispatch=DispatchRule.first), uniform=float)
    rows = result.requests
    rejected = [i for i, status in enumerate(rows["status"]) if status == "rejected"]
    if rejected:
        raise ConfigError(
            f"{len(rejected)} of the recorded requests, which have up to "
            f"{(asked.prompt_tokens + asked.output_tokens).max()} tokens, need more than the {cluster.kv_blocks} "
            f"KV blocks given: type kv_blocks=N, as many as the engine had."
        )
    assert result.steps is not None
    return {
        "request_id": rows["request_id"],
        "prompt_tokens": asked.prompt_tokens,
        "output_tokens": asked.output_tokens,
        "arrival_s": asked.arrival_s,
        "real_queued_s": recording.queued_s,
        "real_first_token_s": recording.first_token_s,
        "real_end_s": recording.end_s,
        "simulated_queued_s": _taken_in(np.asarray(rows["arrival_s"]), result.steps),
        "simulated_first_token_s": rows["first_token_s"],
        "simulated_end_s": rows["end_s"],
        "simulated_preemptions": rows["preemptions"],
    }


def _taken_in(arrival_s: FloatArray, steps: Columns) -> FloatArray:
    """When the engine saw each request: at the end of the step under way, which an arrival makes the end of a row."""
    start_s, end_s = np.asarray(steps["start_s"]), np.asarray(steps["end_s"])
    place = np.minimum(np.searchsorted(end_s, arrival_s), len(end_s) - 1)
    return np.where(start_s[place] < arrival_s, end_s[place], arrival_s)
