"""How a vLLM engine is started. Nothing here imports vLLM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llumnix.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class VllmOptions:
    """One engine of `kv_blocks` blocks of `block_size_tokens` tokens; None leaves vLLM to measure the free memory.

    `model` is a directory or a name that vLLM can load. `high_priority_first` puts high-priority requests before
    normal ones in the queue, and makes them the last to be preempted; without it, requests queue in order of arrival.
    `watermark_fraction` of the blocks stays free when a request is admitted beside others or arrives by migration.
    `arguments` are further arguments of vLLM's EngineArgs, by name, and win over everything else.
    """

    model: str
    dtype: str = "auto"
    load_format: str = "auto"
    block_size_tokens: int = 16
    kv_blocks: int | None = None
    kv_bytes_per_token: int = 0
    max_model_tokens: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    tensor_parallel: int = 1
    prefix_caching: bool = False
    high_priority_first: bool = True
    watermark_fraction: float = 0.0
    migration: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("block_size_tokens", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel"):
            if getattr(self, name) < 1:
                raise ConfigError(f"engine.{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.watermark_fraction < 1:
            raise ConfigError(f"engine.watermark_fraction must be in [0, 1), got {self.watermark_fraction}.")
        if self.kv_blocks is not None and self.kv_blocks < 2:
            raise ConfigError(f"engine.kv_blocks must be at least 2 (vLLM keeps one for itself), got {self.kv_blocks}.")

    def engine_arguments(self) -> dict[str, Any]:
        """Return the arguments of EngineArgs that these options mean."""
        chosen: dict[str, Any] = {
            "model": self.model,
            "dtype": self.dtype,
            "load_format": self.load_format,
            "skip_tokenizer_init": True,
            "block_size": self.block_size_tokens,
            "max_model_len": self.max_model_tokens,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "tensor_parallel_size": self.tensor_parallel,
            "enable_prefix_caching": self.prefix_caching,
            "scheduling_policy": "priority" if self.high_priority_first else "fcfs",
        }
        if self.kv_blocks is not None:
            chosen["num_gpu_blocks_override"] = self.kv_blocks
            if self.kv_bytes_per_token:
                tokens = self.kv_blocks * self.block_size_tokens
                chosen["kv_cache_memory_bytes"] = tokens * self.kv_bytes_per_token // self.tensor_parallel
        return chosen | self.arguments
