"""What a profile's own path says about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from runners import config
from runners.profile_source import Source

config.register()

CSV = """\
prefill_requests,prefill_tokens,prefill_context_tokens,prefill_pairs,decode_requests,decode_context_tokens,step_s
0,0,0,0,1,100,0.01
"""


@pytest.mark.parametrize(
    ("folder", "typed", "layers"),
    [
        ("rtx4090_llama31_8b", [], 32),
        ("RTXPRO6000/Qwen3-32B/bf16/tp1", [], 64),
        ("somebody's", [], 32),
        ("tiny", [], 32),
        ("h100_llama_7b/llama_30b", [], 60),
        ("Qwen3-32B", ["model=llama31_8b"], 32),
        ("Qwen3-32B", ["model.layers=48"], 48),
    ],
)
def test_the_model_is_the_one_that_a_folder_is_named_after_unless_it_is_typed(
    tmp_path: Path, folder: str, typed: list[str], layers: int
) -> None:
    path = tmp_path / folder / "steps.csv"
    path.parent.mkdir(parents=True)
    path.write_text(CSV)
    assert Source.parse([f"from={path}", *typed]).settings.model.layers == layers
