"""Which engines follow from the configuration of a run."""

from __future__ import annotations

from typing import Any

import pytest

from llumnix.cluster.real.build import engine_options
from llumnix.cluster.real.spec import RealEngine, Weights
from llumnix.cluster.spec import ClusterSpec
from llumnix.config import Gpu, Model
from llumnix.policies.spec import Scheduler


@pytest.mark.parametrize(
    ("engine", "arguments"),
    [
        ({"num_gpus": 1}, {}),
        ({"num_gpus": 0}, {}),
        ({"num_gpus": 0.5}, {"gpu_memory_utilization": 0.45}),
        ({"num_gpus": 0.5, "arguments": {"gpu_memory_utilization": 0.3}}, {"gpu_memory_utilization": 0.3}),
        ({"num_gpus": 2, "tensor_parallel": 2}, {"distributed_executor_backend": "mp"}),
    ],
)
def test_arguments_that_follow_from_the_share_of_a_gpu(engine: dict[str, Any], arguments: dict[str, Any]) -> None:
    real = RealEngine(name="vllm", weights=Weights.path, model_path="model", **engine)
    model = Model(name="other", kv_bytes_per_token=1024)
    assert engine_options(ClusterSpec(instances=2), real, model, Gpu(), Scheduler()).arguments == arguments
