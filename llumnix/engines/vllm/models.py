"""Llama models that are written to disk on the spot, so that nothing has to be downloaded.

`tiny_llama` has random weights, the same on every machine, and a tokenizer: real in all but what it says.
`llama_config` is the shape of a real model only, for load_format=dummy. Needs numpy and nothing of vLLM.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaShape:
    """Sizes of a Llama model. vLLM on CPUs wants a head of 32, 64, 80, 96, 112 or 128."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    max_positions: int
    dtype: str = "float16"
    rope_theta: float = 10000.0

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


TINY = LlamaShape(
    hidden=128, intermediate=256, layers=2, heads=4, kv_heads=4, vocabulary=1000, max_positions=8192, dtype="float32"
)
LLAMA_7B = LlamaShape(
    hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000, max_positions=16384
)
LLAMA_30B = LlamaShape(
    hidden=6656, intermediate=17920, layers=60, heads=52, kv_heads=52, vocabulary=32000, max_positions=16384
)
LLAMA31_8B = LlamaShape(
    hidden=4096,
    intermediate=14336,
    layers=32,
    heads=32,
    kv_heads=8,
    vocabulary=128256,
    max_positions=131072,
    dtype="bfloat16",
    rope_theta=500000.0,
)


def tiny_llama(cache: Path | None = None) -> Path:
    """Return the directory of the tiny model; writes it on first use."""
    return _once(cache, "tiny-llama", TINY, with_weights=True)


def llama_config(shape: LlamaShape, cache: Path | None = None) -> Path:
    """Return a directory with the configuration of a model of this shape, without weights."""
    return _once(cache, "llama", shape, with_weights=False)


def cache_directory() -> Path:
    """Return where models are kept: llumnix below $XDG_CACHE_HOME, or below .cache in the home directory."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llumnix"


def _once(cache: Path | None, name: str, shape: LlamaShape, *, with_weights: bool) -> Path:
    """Write the model beside its place and move it there, so that nobody ever sees half of one."""
    digest = hashlib.sha256(repr((shape, with_weights)).encode()).hexdigest()[:12]
    directory = (cache or cache_directory()) / f"{name}-{digest}"
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=directory.parent))
    (scratch / "config.json").write_text(json.dumps(_config(shape), indent=1))
    if with_weights:
        (scratch / "tokenizer.json").write_text(json.dumps(_tokenizer(shape.vocabulary)))
        (scratch / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG))
        _write_safetensors(scratch / "model.safetensors", _weights(shape))
    try:
        scratch.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise
        shutil.rmtree(scratch)  # somebody else was faster
    return directory


def _config(shape: LlamaShape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": shape.dtype,
        "use_cache": True,
    }


def _weights(shape: LlamaShape) -> Weights:
    """Draw weights large enough for outputs that vary: greedy decoding must not settle on one token."""
    random = np.random.Generator(np.random.PCG64(1234))

    def matrix(rows: int, columns: int, scale: float) -> np.ndarray[Any, np.dtype[np.float32]]:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    attention, kv = shape.heads * shape.head, shape.kv_heads * shape.head
    ones = np.ones(shape.hidden, dtype=np.float32)
    weights: Weights = {"model.embed_tokens.weight": matrix(shape.vocabulary, shape.hidden, 1.0)}
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        weights[f"{name}.input_layernorm.weight"] = ones
        weights[f"{name}.post_attention_layernorm.weight"] = ones
        weights[f"{name}.self_attn.q_proj.weight"] = matrix(attention, shape.hidden, 0.08)
        weights[f"{name}.self_attn.k_proj.weight"] = matrix(kv, shape.hidden, 0.08)
        weights[f"{name}.self_attn.v_proj.weight"] = matrix(kv, shape.hidden, 0.08)
        weights[f"{name}.self_attn.o_proj.weight"] = matrix(shape.hidden, attention, 0.08)
        weights[f"{name}.mlp.gate_proj.weight"] = matrix(shape.intermediate, shape.hidden, 0.08)
        weights[f"{name}.mlp.up_proj.weight"] = matrix(shape.intermediate, shape.hidden, 0.08)
        weights[f"{name}.mlp.down_proj.weight"] = matrix(shape.hidden, shape.intermediate, 0.08)
    weights["model.norm.weight"] = ones
    weights["lm_head.weight"] = matrix(shape.vocabulary, shape.hidden, 0.2)
    return weights


def _write_safetensors(path: Path, weights: Weights) -> None:
    """Write the safetensors format: the length of a JSON header in 8 bytes, the header, then tensor after tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in weights.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in weights.values():
            file.write(np.ascontiguousarray(tensor).tobytes())


_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


def _tokenizer(vocabulary: int) -> dict[str, Any]:
    """Return a tokenizer of one word per token: w3 is token 3."""
    special = ["<unk>", "<s>", "</s>"]
    words = special + [f"w{token}" for token in range(len(special), vocabulary)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token,
                "content": word,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token, word in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: token for token, word in enumerate(words)},
            "unk_token": "<unk>",
        },
    }
