"""What cannot migrate, and why: of an engine as a whole, and of one request. What is refused stays and is served."""

from __future__ import annotations

from typing import Any

from llumnix.engines.vllm import versions


def of_engine(core: Any) -> str | None:
    """Return why no request of this engine can migrate; None if they can. `core` is an EngineCore that has started."""
    config, scheduler = core.vllm_config, core.scheduler
    parallel = config.parallel_config
    if config.speculative_config is not None:
        return "speculative decoding keeps draft state that is not moved"
    if config.kv_transfer_config is not None:
        return "a KV connector owns the blocks"
    if parallel.pipeline_parallel_size > 1:
        return "pipeline parallelism is not supported"
    if parallel.data_parallel_size > 1:
        return "data parallelism inside an engine is not supported; start more instances instead"
    if parallel.decode_context_parallel_size > 1 or getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        return "context parallelism spreads a block over ranks"
    if config.model_config.is_encoder_decoder:
        return "encoder-decoder models keep a second cache"
    if getattr(config.cache_config, "calculate_kv_scales", False):
        return "KV scales are calculated per engine"
    missing = versions.missing_fields(scheduler)
    if missing:
        return f"this vLLM lacks {', '.join(missing)}"
    return _of_cache(scheduler.kv_cache_config)


def _of_cache(kv_cache_config: Any) -> str | None:
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        return f"the model has {len(groups)} kinds of KV cache (hybrid or sliding-window attention)"
    spec = groups[0].kv_cache_spec
    full = versions.lookup("vllm.v1.kv_cache_interface.FullAttentionSpec")
    if not isinstance(spec, full) or spec.sliding_window is not None or spec.attention_chunk_size is not None:
        return f"its KV cache ({type(spec).__name__}) is not that of full attention, which only grows"
    return None


def of_request(request: Any) -> str | None:
    """Return why this vLLM request cannot migrate at present; None if it can."""
    params = request.sampling_params
    if request.lora_request is not None:
        return "it uses a LoRA adapter"
    if request.mm_features:
        return "it has multimodal inputs"
    if params is None:
        return "it is a pooling request"
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        return "its prompt is embeddings"
    if request.use_structured_output:
        return "its output is structured; the grammar's state is not moved"
    if request.resumable:
        return "its prompt is streamed"
    if request.kv_transfer_params is not None:
        return "a KV connector takes part in it"
    if getattr(params, "thinking_token_budget", None) is not None:
        return "it has a thinking budget, whose state is not moved"
    if params.prompt_logprobs is not None and request.num_output_tokens == 0:
        return "its prompt logprobs are still being collected"
    if request.status.name not in ("RUNNING", "WAITING", "PREEMPTED"):
        return f"it is {request.status.name.lower().replace('_', ' ')}"
    missing = [name for name in versions.REQUEST_FIELDS if not hasattr(request, name)]
    return f"this vLLM's requests lack {', '.join(missing)}" if missing else None
