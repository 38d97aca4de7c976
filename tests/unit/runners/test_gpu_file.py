"""A fitted cost model as a file: what was measured is in it, and what was not is named."""

from __future__ import annotations

import yaml

from llumnix.engines.sim.cost import StepCost
from runners.gpu_file import Link, best_link, gpu_yaml

COST = StepCost(kv_blocks=100, dense_tokens=[1, 16], dense_ms=[5.0, 6.0])
IPC, MEMORY, INLINE = Link("cuda_ipc", 0.0005, 417.3), Link("shared_memory", 0.0008, 1.0), Link("inline", 0.0, 1.9)


def test_copies_are_those_of_the_carrier_that_instances_of_a_node_would_take() -> None:
    assert best_link([INLINE, MEMORY, IPC]) == IPC
    assert best_link([INLINE, MEMORY]) == MEMORY
    assert best_link([]) is None


def test_what_was_measured_is_in_the_file_and_the_rest_is_named() -> None:
    text = gpu_yaml("mine", "H200", "llama_7b", COST, [], IPC)
    assert (yaml.safe_load(text)["name"], yaml.safe_load(text)["label"]) == ("mine", "H200")
    costs = yaml.safe_load(text)["costs"]["llama_7b"]
    assert (costs["copy_latency_ms"], costs["last_copy_latency_ms"], costs["copy_bandwidth_gb_s"]) == (0.5, 0.5, 417.3)
    assert "# Not measured here, and wanted to simulate migrations: migration_step_ms, control_ms." in text
    assert "copy" not in str(yaml.safe_load(gpu_yaml("mine", "H200", "llama_7b", COST, [])))
