"""A run's name depends on what changes its numbers, and on nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from runners.config import NOT_RESULT
from runners.run_id import job_config, run_id
from runners.serve import CONF


def named(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("serve", list(overrides)), resolve=True, enum_to_str=True)


def name_of(*overrides: str) -> str:
    return run_id(job_config(named(*overrides)), 1)


def test_numbers_are_compared_by_value_not_by_spelling() -> None:
    assert name_of("qps=2") == name_of("qps=2.0") == name_of("qps=2e0")


def test_an_interpolation_names_the_same_run_as_its_value() -> None:
    assert name_of("qps=${trace.paper_qps.2}", "trace=s_s") == name_of("qps=34", "trace=s_s")


@pytest.mark.parametrize(
    "override", ["name=other", "force=true", "dry_run=true", "fail_fast=true", "exclude=[{trace: s}]"]
)
def test_what_only_steers_the_command_does_not_count(override: str) -> None:
    assert name_of(override) == name_of()
    assert override.partition("=")[0] in NOT_RESULT


@pytest.mark.parametrize(
    "override", ["qps=7.6", "cv=2", "seed=1", "repeat=1", "num_requests=9", "scheduler=infaas", "cluster.instances=4"]
)
def test_what_changes_numbers_does_count(override: str) -> None:
    assert name_of(override) != name_of()


def test_other_versions_of_the_records_are_other_runs_and_order_of_keys_is_nothing() -> None:
    assert run_id({"a": 1, "b": 2}, 1) == run_id({"b": 2, "a": 1}, 1)
    assert run_id({"a": 1}, 1) != run_id({"a": 1}, 2)


def test_an_slo_names_a_run_only_where_it_is_given() -> None:
    """The summary of such a run says more; one without keeps its name."""
    none = job_config({"qps": 1.0, "slo": {"ttft_s": None, "tpot_s": None}})
    assert none == {"qps": 1.0}
    given = job_config({"qps": 1.0, "slo": {"ttft_s": 2.0, "tpot_s": None}})
    assert run_id(given, 1) != run_id(none, 1)


def test_options_count_only_where_they_mean_something() -> None:
    """What was run before there was chunked batching, or a profile of anything, keeps its name."""
    assert name_of("engine.prefix_caching=false", "engine.async_scheduling=false") == name_of()
    assert name_of("model.layers=7") == name_of()
    chunked = name_of("engine.batching=chunked", "cluster.max_num_batched_tokens=2048")
    assert chunked != name_of("cluster.max_num_batched_tokens=2048")
    assert chunked != name_of(
        "engine.batching=chunked", "cluster.max_num_batched_tokens=2048", "engine.prefix_caching=false"
    )
    costs = "gpu.costs.llama_7b"
    assert name_of(f"{costs}.dense_tokens=[1]", f"{costs}.dense_ms=[1.0]") != name_of()
    assert name_of(f"{costs}.prefill_per_context_ms=0.001") != name_of()


def test_the_default_run_has_the_name_that_it_always_had() -> None:
    resolved = named("num_requests=400", "engine.record_steps=true")
    later = (
        "dense_tokens",
        "dense_ms",
        "mixed",
        "prefill_per_context_ms",
        "async_scheduling",
        "prefix_caching",
        "layers",
    )
    assert not any(f'"{key}"' in json.dumps(job_config(resolved)) for key in later)
