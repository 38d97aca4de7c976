"""Which engines a run needs, and the start of one in the process of its instance."""

from __future__ import annotations

from typing import Any

from llumnix.cluster.real.spec import RealEngine, Weights
from llumnix.cluster.spec import ClusterSpec
from llumnix.config import Gpu, Model
from llumnix.engines.base import Engine
from llumnix.engines.vllm.options import VllmOptions
from llumnix.errors import ConfigError
from llumnix.policies.spec import QueueOrder, Scheduler

SHARED_MEMORY = 0.9
"""Share of a GPU's memory for all instances on it together."""

VLLMS_OWN_BLOCKS = 1
"""Blocks that vLLM hands out to no request."""


def engine_options(
    cluster: ClusterSpec, engine: RealEngine, model: Model, gpu: Gpu, scheduler: Scheduler
) -> VllmOptions:
    """Say how each engine is started; writes the tiny model, or the shape of a model, if it is not there yet."""
    from llumnix.engines.vllm import models

    shapes = {
        "tiny": models.TINY,
        "llama_7b": models.LLAMA_7B,
        "llama_30b": models.LLAMA_30B,
        "llama31_8b": models.LLAMA31_8B,
    }
    if engine.weights is Weights.path:
        path = str(engine.model_path)
    elif model.name not in shapes:
        known = ", ".join(shapes)
        raise ConfigError(
            f"model={model.name} has no built-in shape ({known}); set engine.weights=path engine.model_path=DIR."
        )
    elif engine.weights is Weights.tiny:
        path = str(models.tiny_llama())
    else:
        path = str(models.llama_config(shapes[model.name]))
    measured = gpu.costs.get(model.name)
    blocks = cluster.kv_blocks if cluster.kv_blocks is not None else measured and measured.kv_blocks
    return VllmOptions(
        model=path,
        dtype=engine.dtype,
        load_format="dummy" if engine.weights is Weights.dummy else "auto",
        block_size_tokens=cluster.block_size_tokens,
        kv_blocks=blocks + VLLMS_OWN_BLOCKS if blocks else None,
        kv_bytes_per_token=model.kv_bytes_per_token,
        max_model_tokens=engine.max_model_tokens,
        max_num_seqs=cluster.max_num_seqs,
        max_num_batched_tokens=cluster.max_num_batched_tokens,
        tensor_parallel=engine.tensor_parallel,
        prefix_caching=engine.prefix_caching,
        high_priority_first=scheduler.queue_order is not QueueOrder.arrival,
        watermark_fraction=cluster.watermark_fraction,
        migration=engine.migration,
        arguments=_arguments(engine) | engine.arguments,
    )


def _arguments(engine: RealEngine) -> dict[str, Any]:
    """Return the arguments of vLLM that follow from the share of GPUs that Ray gives an instance."""
    if engine.tensor_parallel > 1:  # ranks are processes of the instance's own actor: Ray gave it the GPUs
        return {"distributed_executor_backend": "mp"}
    if 0 < engine.num_gpus < 1:  # vLLM refuses to start where less memory is free than it takes for its own
        return {"gpu_memory_utilization": round(SHARED_MEMORY * engine.num_gpus, 3)}
    return {}


def build_engine(options: VllmOptions, environment: dict[str, str], instance_id: int) -> Engine:
    """Start one engine in the process of its instance."""
    import os

    del instance_id
    os.environ.update(environment)
    from llumnix.engines.vllm.engine import VllmEngine

    return VllmEngine(options)
