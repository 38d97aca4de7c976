"""Why a request cannot migrate; stand-ins for vLLM's requests, one thing wrong with each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llumnix.engines.vllm import refusals


def vllm_request(**changes: Any) -> Any:
    """A request that can migrate, but for `changes`."""
    fine = {
        "sampling_params": SimpleNamespace(prompt_logprobs=None),
        "lora_request": None,
        "mm_features": [],
        "prompt_token_ids": [3],
        "prompt_embeds": None,
        "use_structured_output": False,
        "resumable": False,
        "kv_transfer_params": None,
        "num_output_tokens": 0,
        "status": SimpleNamespace(name="RUNNING"),
        "num_in_flight_tokens": 0,
        "num_output_placeholders": 0,
        "num_preemptions": 0,
        "prefill_stats": None,
    }
    return SimpleNamespace(**(fine | changes))


@pytest.mark.parametrize("status", ["RUNNING", "WAITING", "PREEMPTED"])
def test_a_plain_request_can_migrate(status: str) -> None:
    assert refusals.of_request(vllm_request(status=SimpleNamespace(name=status))) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora_request": object()}, "LoRA"),
        ({"mm_features": [object()]}, "multimodal"),
        ({"sampling_params": None}, "pooling"),
        ({"prompt_embeds": object()}, "embeddings"),
        ({"use_structured_output": True}, "structured"),
        ({"resumable": True}, "streamed"),
        ({"kv_transfer_params": {}}, "KV connector"),
        ({"sampling_params": SimpleNamespace(prompt_logprobs=1)}, "prompt logprobs"),
        ({"sampling_params": SimpleNamespace(prompt_logprobs=None, thinking_token_budget=9)}, "thinking budget"),
        ({"status": SimpleNamespace(name="WAITING_FOR_REMOTE_KVS")}, "it is waiting for remote kvs"),
    ],
)
def test_what_cannot_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    answer = refusals.of_request(vllm_request(**changes))
    assert answer is not None
    assert reason in answer


def test_prompt_logprobs_hinder_only_until_the_first_token() -> None:
    scored = vllm_request(sampling_params=SimpleNamespace(prompt_logprobs=1), num_output_tokens=1)
    assert refusals.of_request(scored) is None


def test_a_request_without_what_migration_reads_is_refused() -> None:
    odd = vllm_request()
    del odd.num_in_flight_tokens
    assert refusals.of_request(odd) == "this vLLM's requests lack num_in_flight_tokens"


def core(**changes: Any) -> Any:
    """An engine core that can migrate up to the look of its cache, but for `changes` of its configuration."""
    parallel = {
        "pipeline_parallel_size": 1,
        "data_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "prefill_context_parallel_size": 1,
    }
    config = {
        "speculative_config": None,
        "kv_transfer_config": None,
        "model_config": SimpleNamespace(is_encoder_decoder=False),
        "cache_config": SimpleNamespace(calculate_kv_scales=False),
    }
    own = {name: changes.pop(name, value) for name, value in parallel.items()}
    scheduler = SimpleNamespace(
        requests={},
        running=[],
        waiting=[],
        finished_req_ids=set(),
        max_num_running_reqs=1,
        use_v2_model_runner=False,
        kv_cache_config=SimpleNamespace(kv_cache_groups=[object(), object()]),
    )
    settings = SimpleNamespace(**(config | changes), parallel_config=SimpleNamespace(**own))
    return SimpleNamespace(vllm_config=settings, scheduler=scheduler)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"speculative_config": object()}, "speculative"),
        ({"kv_transfer_config": object()}, "KV connector"),
        ({"pipeline_parallel_size": 2}, "pipeline"),
        ({"data_parallel_size": 2}, "data parallelism"),
        ({"decode_context_parallel_size": 2}, "context parallelism"),
        ({"model_config": SimpleNamespace(is_encoder_decoder=True)}, "encoder-decoder"),
        ({"cache_config": SimpleNamespace(calculate_kv_scales=True)}, "scales"),
        ({}, "2 kinds of KV cache (hybrid or sliding-window attention)"),
    ],
)
def test_engines_that_cannot_migrate_say_why(changes: dict[str, Any], reason: str) -> None:
    answer = refusals.of_engine(core(**changes))
    assert answer is not None
    assert reason in answer
