"""Two engines of two tensor-parallel ranks each, four worker processes: `python two_ranks.py MODELS_DIRECTORY`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from driver import BLOCK, Cluster, migrate, request

from llumnix.engines.vllm.engine import VllmEngine
from llumnix.engines.vllm.models import tiny_llama
from llumnix.engines.vllm.options import VllmOptions

REQUESTS = [
    request("greedy", 2 * BLOCK + 6, max_tokens=30),
    request("seeded", 100, temperature=1.0, seed=3, max_tokens=30),
]


def engine(models: Path) -> VllmEngine:
    return VllmEngine(
        VllmOptions(
            model=str(tiny_llama(models)),
            dtype="float32",
            block_size_tokens=BLOCK,
            kv_blocks=100,
            kv_bytes_per_token=2048,
            max_model_tokens=1024,
            max_num_seqs=8,
            tensor_parallel=2,
            arguments={"enforce_eager": True, "distributed_executor_backend": "mp"},
        )
    )


def run(engines: list[VllmEngine], carrier: str | None) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Serve all requests, moving each after five tokens if a carrier is given."""
    cluster = Cluster(*engines)
    for one in REQUESTS:
        engines[0].add(one)
    moved = []
    if carrier is not None:
        cluster.step_until(5, [one.request_id for one in REQUESTS])
        moved = [migrate(cluster, one.request_id, 0, 1, carrier=carrier).ok for one in REQUESTS]
    cluster.drain()
    cluster.assert_clean()
    most = max((max(step.values()) for step in cluster.scheduled[1]), default=0)
    return cluster.delivered.tokens, {"moved": moved, "most_tokens_in_a_step": most}


def main() -> None:
    engines = [engine(Path(sys.argv[1])) for _ in range(2)]
    expected, _ = run(engines, None)
    answer = {}
    for carrier in engines[0].carriers:
        tokens, answer[carrier] = run(engines, carrier)
        answer[carrier]["same"] = tokens == expected
    print(json.dumps(answer), flush=True)
    for one in engines:
        one._core.model_executor.shutdown()


if __name__ == "__main__":
    main()
