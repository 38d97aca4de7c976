"""Real engines for CPU, in this process. The first one takes some seconds, every other a second or less."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driver import BLOCK, Make

os.environ.update(VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1", VLLM_CPU_OMP_THREADS_BIND="nobind")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep these tests in one process, for they share engines. Skip them without vLLM, but never in CI."""
    marks = [pytest.mark.xdist_group("engines")]
    if importlib.util.find_spec("vllm") is None and os.environ.get("CI") != "true":
        reason = "vLLM is not installed; `make test` installs it where pip finds a CPU torch"
        marks.append(pytest.mark.skip(reason=reason))
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for mark in marks:
                item.add_marker(mark)


@pytest.fixture(scope="session")
def made_engines() -> dict[str, Any]:
    """Every engine that has been started, by what it was asked to be."""
    return {}


@pytest.fixture(autouse=True)
def _empty_engines(made_engines: dict[str, Any]) -> Iterator[None]:
    """A test that fails must not leave its requests to the next one."""
    yield
    for engine in made_engines.values():
        scheduler = engine._scheduler
        for request_id in [*scheduler.requests, *getattr(scheduler, "arriving", ())]:
            engine.abort(request_id)
        getattr(scheduler, "leaving", {}).clear()
        while engine.has_work():
            engine.step()


@pytest.fixture(scope="session")
def engine_of(made_engines: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Returns a maker of engines; `name` tells apart those with equal options, and equal calls share one."""
    import torch

    from llumnix.engines.vllm.engine import VllmEngine
    from llumnix.engines.vllm.models import tiny_llama
    from llumnix.engines.vllm.options import VllmOptions

    torch.set_num_threads(1)
    model = tiny_llama(tmp_path_factory.getbasetemp().parent / "models")

    def make(name: str, **changes: Any) -> Any:
        options: dict[str, Any] = {
            "dtype": "float32",
            "block_size_tokens": BLOCK,
            "kv_blocks": 120,
            "kv_bytes_per_token": 2048,
            "max_model_tokens": 1024,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 2048,
            # Many engines share a GPU, where there is one.
            "arguments": {"enforce_eager": True, "gpu_memory_utilization": 0.1},
        }
        key = f"{name} {sorted(changes.items(), key=str)}"
        if key not in made_engines:
            made_engines[key] = VllmEngine(VllmOptions(model=str(model), **(options | changes)))
        return made_engines[key]

    return make
