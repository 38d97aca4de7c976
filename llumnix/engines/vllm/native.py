"""Requests in vLLM's own form."""

from __future__ import annotations

from typing import Any

from llumnix.engines.base import EngineRequest
from llumnix.engines.vllm import versions
from llumnix.request import Priority


def as_native(request: EngineRequest, max_request_tokens: int, eos_token_id: int | list[int] | None) -> Any:
    """Return an EngineCoreRequest. To vLLM a lower number is the higher priority.

    Without max_tokens a request may go on until it has `max_request_tokens` tokens.
    """
    if request.native is not None:
        return request.native
    params = versions.lookup("vllm.SamplingParams")(**request.sampling)
    if params.max_tokens is None or "max_tokens" not in request.sampling:
        params.max_tokens = max_request_tokens - len(request.prompt)
    only = eos_token_id if isinstance(eos_token_id, int) else None
    params.update_from_generation_config({"eos_token_id": eos_token_id}, only)
    return versions.lookup("vllm.v1.engine.EngineCoreRequest")(
        request_id=request.request_id,
        prompt_token_ids=list(request.prompt),
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=request.arrival_s,
        lora_request=None,
        cache_salt=request.cache_salt,
        data_parallel_rank=None,
        priority=-1 if request.priority is Priority.HIGH else 0,
        external_req_id=request.request_id,
    )
