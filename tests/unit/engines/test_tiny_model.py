"""The model that is written on the spot: the same on every machine, whole or not there."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from llumnix.engines.vllm.models import LLAMA_7B, TINY, llama_config, tiny_llama


def test_it_is_written_once_and_is_always_the_same(tmp_path: Path) -> None:
    first, again = tiny_llama(tmp_path / "a"), tiny_llama(tmp_path / "a")
    other = tiny_llama(tmp_path / "b")
    assert first == again
    assert first.name == other.name
    digests = [hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() for path in (first, other)]
    assert digests[0] == digests[1]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [first.name]  # no scratch is left


def test_its_weights_are_where_the_header_says(tmp_path: Path) -> None:
    raw = (tiny_llama(tmp_path) / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert ends[0][0] == 0
    assert all(left[1] == right[0] for left, right in pairwise(ends))
    assert ends[-1][1] == len(raw) - 8 - length
    start, end = header["model.norm.weight"]["data_offsets"]
    norm = np.frombuffer(raw[8 + length + start : 8 + length + end], dtype=np.float32)
    assert norm.tolist() == [1.0] * TINY.hidden
    assert header["lm_head.weight"]["shape"] == [TINY.vocabulary, TINY.hidden]


def test_a_shape_without_weights_is_a_configuration_only(tmp_path: Path) -> None:
    directory = llama_config(LLAMA_7B, tmp_path)
    assert [path.name for path in directory.iterdir()] == ["config.json"]
    config = json.loads((directory / "config.json").read_text())
    assert (config["num_hidden_layers"], config["head_dim"], config["torch_dtype"]) == (32, 128, "float16")
