"""Layers added up to steps, by hand; and files that are no profile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llumnix.engines.sim.layers import steps_of_layers
from llumnix.errors import ConfigError
from llumnix.profile import PROFILE

FILES = {
    "dense.csv": """layer,tokens,time_us
        embedding,1,10
        embedding,101,10
        final_layernorm,1,20
        final_layernorm,101,20
        layernorm,1,3
        layernorm,101,3
        mlp,1,100
        mlp,101,300
        """,
    "per_sequence.csv": """layer,sequences,time_us
        lm_head,1,1000
        lm_head,11,2000
        sampler,1,50
        """,
    "attention.csv": """prefill_chunk,kv_prefill,n_decode,kv_decode,time_us
        0,0,10,64,7
        50,0,0,0,11
        50,200,0,0,13
        41,16,10,64,17
        100,0,10,64,1
        0,0,0,0,1
        """,
}


def profile_of(directory: Path, **changes: str | None) -> Path:
    """Write the files of a profile, some of them changed or (None) left out."""
    for name, content in (FILES | {f"{key}.csv": value for key, value in changes.items()}).items():
        if content is not None:
            (directory / name).write_text(
                "\n".join(line.strip() for line in content.splitlines() if line.strip()) + "\n"
            )
    return directory


def test_a_step_is_every_layer_as_often_as_the_model_has_it(tmp_path: Path) -> None:
    steps = steps_of_layers(profile_of(tmp_path), layers=4, kv_tokens=None)
    assert list(steps) == PROFILE.names
    rows = list(zip(*(np.asarray(column).tolist() for column in steps.values()), strict=True))
    # dense: 10 + 20 once, 2 layernorms and one mlp in each of 4 layers; mlp at n tokens: 100 + 2 (n - 1)
    # for each request: 1000 + 100 (n - 1), and 50
    expected = [
        (0, 0, 0, 0, 10, 640, 30 + 4 * (6 + 118) + 1950 + 4 * 7),
        (1, 50, 0, 50 * 51 // 2, 0, 0, 30 + 4 * (6 + 198) + 1050 + 4 * 11),
        (1, 50, 200, 50 * 200 + 50 * 51 // 2, 0, 0, 30 + 4 * (6 + 198) + 1050 + 4 * 13),
        (1, 41, 16, 41 * 16 + 41 * 42 // 2, 10, 640, 30 + 4 * (6 + 200) + 2050 + 4 * 17),
    ]  # and not the step of 110 tokens, more than dense.csv has, nor that of none
    assert [row[:-1] for row in rows] == [row[:-1] for row in expected]
    np.testing.assert_allclose([row[-1] for row in rows], [row[-1] / 1e6 for row in expected])


def test_steps_that_need_more_kv_than_there_is_are_left_out(tmp_path: Path) -> None:
    profile_of(tmp_path)
    assert steps_of_layers(tmp_path, 4, 640)["decode_requests"].tolist() == [10, 0, 0]
    assert steps_of_layers(tmp_path, 4, 249)["prefill_context_tokens"].tolist() == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": None}, r"attention.csv is missing: a profile of layers has dense.csv, per_sequence.csv and"),
        (
            {"dense": "layer,tokens,time_ms\nmlp,1,2"},
            r"dense.csv has no column time_us; it needs layer, tokens, time_us",
        ),
        ({"per_sequence": "layer,sequences,time_us\nsampler,one,2"}, "column sequences must hold numbers only"),
        ({"per_sequence": "layer,sequences,time_us\nsampler,,2\nsampler,1,2"}, "column sequences has 1 empty values"),
        ({"dense": "layer,tokens,time_us"}, "dense.csv has no rows"),
        ({"dense": "layer,tokens,time_us\nmlp,1"}, "dense.csv is no table of comma-separated values"),
        ({"dense": ""}, "dense.csv is no table of comma-separated values"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        steps_of_layers(profile_of(tmp_path, **changes), 4, None)
