"""The shape of a cluster: how many instances, and the limits that each of them has. Schema of conf/cluster."""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class ClusterSpec:
    """`instances` identical engines.

    `kv_blocks` is the number of KV-cache blocks of one instance; None takes the number measured for the model on the
    GPU (StepCost.kv_blocks). `watermark_fraction` of the blocks stays free when requests are admitted (vLLM in the
    paper's time: 1 %, today: none).
    """

    name: str = ""
    instances: int = 16
    block_size_tokens: int = 16
    kv_blocks: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 12800
    watermark_fraction: float = 0.01

    def __post_init__(self) -> None:
        for name in ("instances", "block_size_tokens", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"cluster.{name} must be at least 1, got {getattr(self, name)}.")
        if self.kv_blocks is not None and self.kv_blocks < 1:
            raise ConfigError(
                f"cluster.kv_blocks must be at least 1 (or null for the GPU's own), got {self.kv_blocks}."
            )
        if not 0 <= self.watermark_fraction < 1:
            raise ConfigError(f"cluster.watermark_fraction must be in [0, 1), got {self.watermark_fraction}.")
