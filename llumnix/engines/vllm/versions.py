"""Everything that depends on the version of vLLM, and the check at start-up that says whether migration is safe.

Supported: 0.26 to 0.32. On another version, or where a hook has moved, the engine serves without migration. Names of
vLLM are looked up at run time, so that nothing else of the package, nor a type check, needs vLLM to be installed.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any

SUPPORTED = ((0, 26), (0, 32))  # first and last minor version, both included

# What migration relies on: members of classes and arguments of functions, by the path of their owner.
HOOKS: dict[str, tuple[str, ...]] = {
    "vllm.config.SchedulerConfig": ("scheduler_cls", "async_scheduling"),
    "vllm.config.ParallelConfig": ("worker_extension_cls",),
    "vllm.v1.engine.EngineCoreRequest": ("request_id", "prompt_token_ids", "sampling_params", "priority"),
    "vllm.v1.engine.core.EngineCore": (
        "post_step",
        "preprocess_add_request",
        "collective_rpc",
        "execute_dummy_batch",
    ),
    "vllm.v1.executor.Executor": ("get_class", "collective_rpc"),
    "vllm.v1.request.Request": ("from_engine_core_request", "append_output_token_ids", "is_finished"),
    "vllm.v1.core.sched.scheduler.Scheduler": ("schedule", "finish_requests", "get_request_counts", "has_requests"),
    "vllm.v1.core.sched.async_scheduler.AsyncScheduler": ("schedule", "finish_requests"),
    "vllm.v1.core.kv_cache_manager.KVCacheManager": (
        "get_computed_blocks",
        "cache_blocks",
        "free",
        "get_block_ids",
        "usage",
    ),
    "vllm.v1.core.kv_cache_manager.KVCacheManager.allocate_slots": (
        "num_new_computed_tokens",
        "new_computed_blocks",
        "delay_cache_blocks",
        "reserved_blocks",
    ),
    "vllm.v1.core.sched.output.NewRequestData": ("prefill_token_ids",),
    "vllm.v1.core.sched.output.CachedRequestData": ("all_token_ids", "resumed_req_ids"),
    "vllm.v1.worker.gpu_input_batch.CachedRequestState": ("generator", "output_token_ids", "num_computed_tokens"),
}

# What every live object must have; classes do not show what __init__ sets.
REQUEST_FIELDS = ("num_in_flight_tokens", "num_output_placeholders", "num_preemptions", "prefill_stats")
SCHEDULER_FIELDS = ("requests", "running", "waiting", "finished_req_ids", "max_num_running_reqs", "use_v2_model_runner")


@dataclass(frozen=True, slots=True)
class Finding:
    """What the check found: the version of vLLM, and every hook that is not where it should be."""

    version: str
    missing: tuple[str, ...]

    @property
    def unsupported(self) -> str | None:
        """Why there is no migration with this vLLM, in one sentence; None if there is."""
        first, last = (f"{major}.{minor}" for major, minor in SUPPORTED)
        if not SUPPORTED[0] <= minor_version(self.version) <= SUPPORTED[1]:
            return (
                f"vLLM {self.version} is outside {first} to {last}, the versions that migration is known to work with"
            )
        if self.missing:
            return f"vLLM {self.version} lacks what migration needs: {', '.join(self.missing)}"
        return None


def check() -> Finding:
    """Look for every hook in the installed vLLM."""
    missing = [f"{path}: {name}" for path, names in HOOKS.items() for name in names if name not in _names_of(path)]
    return Finding(str(import_module("vllm").__version__), tuple(missing))


def missing_fields(scheduler: Any, request: Any | None = None) -> list[str]:
    """Return the attributes that a live scheduler (and a request) should have and does not."""
    missing = [f"Scheduler.{name}" for name in SCHEDULER_FIELDS if not hasattr(scheduler, name)]
    if request is not None:
        missing += [f"Request.{name}" for name in REQUEST_FIELDS if not hasattr(request, name)]
    return missing


def minor_version(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version string; (0, 0) for one that has no such form, such as "dev"."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _names_of(path: str) -> set[str]:
    try:
        owner = pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return set()
    names = {*dir(owner), *getattr(owner, "__dataclass_fields__", ()), *getattr(owner, "__struct_fields__", ())}
    return names | set(inspect.signature(owner).parameters) if inspect.isfunction(owner) else names


def lookup(path: str) -> Any:
    """Return a name of vLLM by its path; ImportError or AttributeError if it is not there."""
    return pkgutil.resolve_name(path)


def final_tokens(request: Any) -> int:
    """Return how many tokens of a request have KV that no step in flight can still change."""
    return max(0, int(request.num_computed_tokens) - int(request.num_in_flight_tokens))


def watermark(fraction: float) -> dict[str, float]:
    """Return the argument of EngineArgs that keeps blocks free at admission; none where there is no such argument."""
    return {"watermark": fraction} if "watermark" in lookup("vllm.EngineArgs").__dataclass_fields__ else {}


# --- the scheduler's queues


def queue_of_block_holders(scheduler: Any) -> Any:
    """Return the queue for waiting requests that hold KV blocks.

    0.32 has one that is drained before all others. In 0.26 they stand in the one queue there is, at its front.
    """
    return getattr(scheduler, "kv_holding_waiting", scheduler.waiting)


def waiting_queues(scheduler: Any) -> list[Any]:
    """Return every queue that a waiting request can stand in: 0.32 waiting, kv_holding; 0.26 waiting, skipped."""
    names = ("kv_holding_waiting", "skipped_waiting")
    return [scheduler.waiting, *(getattr(scheduler, name) for name in names if hasattr(scheduler, name))]


def forget_deferral(scheduler: Any, request: Any) -> None:
    """Drop a request that leaves its queue from 0.32's set of requests that the last scan skipped."""
    if hasattr(scheduler, "deferred_waiting"):
        scheduler.deferred_waiting.discard(request)


def keep_from_zeroing(scheduler: Any, request_id: str) -> None:
    """Keep the blocks of an arriving request off the list that the next step wipes (mixed-precision models)."""
    manager = scheduler.kv_cache_manager
    own = {block for group in manager.get_block_ids(request_id) for block in group}
    for group_manager in manager.coordinator.single_type_managers:
        if getattr(group_manager, "new_block_ids", None):
            group_manager.new_block_ids = [block for block in group_manager.new_block_ids if block not in own]


def steps_in_flight(core: Any) -> int:
    """Return how many steps have been begun and not yet completed; 0 between the steps of a synchronous engine."""
    return len(core.batch_queue or ())


def token_budget(scheduler: Any) -> int:
    """Return how many tokens a step takes at most."""
    return int(scheduler.max_num_scheduled_tokens)


def set_token_budget(scheduler: Any, tokens: int) -> None:
    """Let steps from now on take at most `tokens` tokens; not more than the engine was started with."""
    scheduler.max_num_scheduled_tokens = tokens


# --- the model runners


def holds_request_state(model_runner: Any) -> bool:
    """Tell whether the worker keeps its own copy of each request (model runner V1) or gets all of it with each step.

    V1 runs on CPUs in all versions; V2 is the default on GPUs where Triton is installed. 0.26 and 0.32 alike.
    """
    return hasattr(model_runner, "input_batch") and isinstance(getattr(model_runner, "requests", None), dict)
