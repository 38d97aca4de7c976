"""Machines that are not there: their kernels by a roofline, the profile of layers that would be measured on them, and
requests that an engine with exactly these steps has served. What a fit to the files must find is therefore known.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llumnix.cluster.replay import replay
from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.cost import CostModel, MixedCost, StepCost
from llumnix.engines.sim.spec import SimEngine
from llumnix.ground_truth import Recording
from llumnix.request import Workload

DENSE_TOKENS = [*range(1, 17), *range(20, 65, 4), *range(80, 2049, 16)]
POWERS = [2**i for i in range(4, 15)]


@dataclass(frozen=True)
class Machine:
    """A GPU and a model: bytes and operations of each kernel, and how many of them the GPU makes a second."""

    bandwidth_gb_s: float
    tflops: float
    launch_us: float = 4.0  # of each kernel
    tile_tokens: int = 64  # of matrix products: so many tokens take as long as one
    layers: int = 32
    hidden: int = 4096
    kv_bytes_per_token: int = 4096  # of one layer
    weights_mb: float = 436.0  # of one layer
    vocabulary: int = 128_000
    mixed: float = 1.3  # what attention over both kinds costs, as a multiple of its parts
    dense_tokens: tuple[int, ...] = tuple(DENSE_TOKENS)

    def product_us(self, weights_bytes: float, tokens: np.ndarray) -> np.ndarray:
        """One matrix product: it reads the weights, and computes in tiles."""
        padded = -(-tokens // self.tile_tokens) * self.tile_tokens
        return self.launch_us + np.maximum(
            weights_bytes / self.bandwidth_gb_s / 1e3, weights_bytes * padded / self.tflops / 1e6
        )

    def layer_us(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Each layer of dense.csv at each number of tokens."""
        activation = self.launch_us + 4 * self.hidden * tokens / self.bandwidth_gb_s / 1e3
        shares = {"qkv_proj": 0.12, "o_proj": 0.08, "gate_up_proj": 0.53, "down_proj": 0.27}
        products = {name: self.product_us(share * self.weights_mb * 1e6, tokens) for name, share in shares.items()}
        return products | dict.fromkeys(("layernorm", "act_fn", "rotary_emb", *ONCE), activation)

    def sequence_us(self, sequences: np.ndarray) -> np.ndarray:
        """lm_head and sampler."""
        head = 2 * self.vocabulary * self.hidden / self.bandwidth_gb_s / 1e3
        return self.launch_us + head + 6.0 * sequences * 1000 / self.bandwidth_gb_s

    def attention_us(self, chunk: np.ndarray, context: np.ndarray, decodes: np.ndarray, held: np.ndarray) -> np.ndarray:
        """Attention of one layer: decodes read the KV they hold, prompts read theirs and compute."""
        kv_us = self.kv_bytes_per_token / self.bandwidth_gb_s / 1e3
        squares = (chunk + context) ** 2 - context**2
        parts = self.launch_us + kv_us * (held + context) + 2 * self.hidden * squares / self.tflops / 1e6
        return np.where((chunk > 0) & (decodes > 0), self.mixed, 1.0) * parts

    @property
    def cost(self) -> CostModel:
        """The same as step costs, with a point of the dense line for each number of tokens."""
        tokens, ms = np.arange(1, 2049), self.layers / 1000
        kv_ms = ms * self.kv_bytes_per_token / self.bandwidth_gb_s / 1e3
        square_ms = ms * 2 * self.hidden / self.tflops / 1e6
        dense_us = sum(us * counted(name, self.layers) for name, us in self.layer_us(tokens).items())
        first, second = self.sequence_us(np.array([1, 2]))
        dense_ms = (dense_us + 2 * first - second) / 1000 + ms * self.launch_us
        spec = StepCost(
            dense_tokens=tokens.tolist(),
            dense_ms=np.maximum.accumulate(dense_ms).tolist(),
            decode_per_request_ms=(second - first) / 1000,
            prefill_per_request_ms=(second - first) / 1000,
            decode_per_token_ms=kv_ms,
            prefill_per_token2_ms=square_ms,
            prefill_per_context_ms=kv_ms,
            mixed=MixedCost(
                base_ms=(self.mixed - 1) * ms * self.launch_us,
                decode_per_request_ms=(second - first) / 1000,
                decode_per_token_ms=self.mixed * kv_ms,
                prefill_per_token2_ms=self.mixed * square_ms,
                prefill_per_context_ms=self.mixed * kv_ms,
            ),
        )
        return CostModel(spec, 1)

    def write_profile(self, directory: Path, noise: float = 0.0, seed: int = 0) -> Path:
        """Write the three files of a profile, each time off by `noise` (the standard deviation of a factor)."""
        rng = np.random.default_rng(seed)

        def noisy(us: np.ndarray) -> np.ndarray:
            return us * np.exp(noise * rng.standard_normal(len(us)))

        tokens = np.array(self.dense_tokens)
        dense = [
            f"{name},{n},{t:.5f}"
            for name, us in self.layer_us(tokens).items()
            for n, t in zip(tokens, noisy(us), strict=True)
        ]
        sequences = np.array([n for n in self.dense_tokens if n <= 256])
        sequence = [f"lm_head,{n},{t:.5f}" for n, t in zip(sequences, noisy(self.sequence_us(sequences)), strict=True)]
        rows = np.array(
            [
                (chunk, context, decodes, held)
                for chunk in (0, *(n for n in POWERS if n <= 2048))
                for context in ((0, *POWERS) if chunk else (0,))
                for decodes in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
                for held in (POWERS if decodes else (0,))
                if (chunk or decodes) and chunk + context + decodes * held <= 60_000 and chunk + decodes <= 2048
            ]
        )
        chunk, context, decodes, held = rows.T
        times = noisy(self.attention_us(chunk, context, decodes, decodes * held))
        attention = [f"{','.join(map(str, row))},{t:.5f}" for row, t in zip(rows, times, strict=True)]
        for name, head, lines in (
            ("dense.csv", "layer,tokens,time_us", dense),
            ("per_sequence.csv", "layer,sequences,time_us", sequence),
            ("attention.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", attention),
        ):
            (directory / name).write_text("\n".join([head, *lines]) + "\n")
        return directory


ONCE = ("embedding", "final_layernorm")


def counted(layer: str, layers: int) -> int:
    """How often a step has a layer of dense.csv."""
    return 1 if layer in ONCE else 2 * layers if layer == "layernorm" else layers


MACHINES = {
    "like an RTX 4090": Machine(1000, 160),
    "ten times faster": Machine(10_000, 1600, launch_us=1.0),
    "ten times slower": Machine(100, 16, launch_us=8.0),
    "without grouped queries": Machine(2000, 300, kv_bytes_per_token=16_384, weights_mb=404, vocabulary=32_000),
    "a larger model": Machine(3000, 700, layers=80, hidden=8192, weights_mb=1700),
    "large tiles": Machine(1000, 160, tile_tokens=256),
    "bound by launches": Machine(3000, 700, launch_us=20.0),
    "half of a model, on each of two GPUs": Machine(1500, 300, layers=64, hidden=5120, weights_mb=480, mixed=1.0),
}


def served(machine: Machine, asked: Workload, cluster: ClusterSpec, engine: SimEngine) -> Recording:
    """What an engine with exactly the steps of `machine` has answered."""
    none = np.zeros(len(asked.arrival_s))
    columns = replay(Recording(asked, none, none, none), cluster, engine, machine.cost)
    return Recording(
        asked, *(np.asarray(columns[f"simulated_{name}"]) for name in ("queued_s", "first_token_s", "end_s"))
    )


def write_requests(path: Path, recording: Recording) -> None:
    """Write a requests.jsonl, whose arrivals have another clock than the engine."""
    asked = recording.workload
    rows = zip(
        asked.prompt_tokens.tolist(),
        asked.output_tokens.tolist(),
        (asked.arrival_s + 1e9).tolist(),
        (recording.queued_s + 500).tolist(),
        (recording.first_token_s + 500).tolist(),
        (recording.end_s + 500).tolist(),
        strict=True,
    )
    names = ("input_toks", "output_toks", "arrival_time", "queued_ts", "first_token_ts", "last_token_ts")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
