"""Layers added up to steps, by hand; and files that are no profile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llumnix.engines.sim.layers import LayerProfile
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
    steps = LayerProfile.read(profile_of(tmp_path)).steps(layers=4, kv_tokens=None)
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
    assert LayerProfile.read(tmp_path).steps(4, 640)["decode_requests"].tolist() == [10, 0, 0]
    assert LayerProfile.read(tmp_path).steps(4, 249)["prefill_context_tokens"].tolist() == [0]


def test_rows_without_a_time_or_with_a_negative_number_are_left_out_and_counted(tmp_path: Path) -> None:
    whole = LayerProfile.read(profile_of(tmp_path)).steps(4, None)
    broken = "".join(
        f"{row}\n" for row in ("sampler,1,nan", "sampler,,3", "sampler,1,0", "lm_head,-1,4", "lm_head,2,inf")
    )
    profile_of(tmp_path, per_sequence=FILES["per_sequence.csv"] + broken)
    found = LayerProfile.read(tmp_path)
    assert found.unusable == {"per_sequence.csv": 5}
    np.testing.assert_array_equal(found.steps(4, None)["step_s"], whole["step_s"])


@pytest.mark.parametrize("unit", ["time_ns", "time_ms", "time_s"])
def test_a_time_is_read_in_the_unit_that_its_heading_says(tmp_path: Path, unit: str) -> None:
    whole = LayerProfile.read(profile_of(tmp_path)).steps(4, None)
    factor = {"time_ns": 1e3, "time_ms": 1e-3, "time_s": 1e-6}[unit]
    head, *rows = FILES["attention.csv"].split()
    cells = [row.rpartition(",") for row in rows]
    other = "\n".join([head.replace("time_us", unit), *(f"{left},{factor * float(us)}" for left, _, us in cells)])
    np.testing.assert_allclose(
        LayerProfile.read(profile_of(tmp_path, attention=other)).steps(4, None)["step_s"], whole["step_s"]
    )


def test_order_repeated_rows_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    whole = LayerProfile.read(profile_of(tmp_path)).steps(4, None)
    for name, content in FILES.items():
        head, *rows = content.split()
        lines = [f"note, {head}", *(f"x,{row}" for row in [*reversed(rows), *rows])]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    found = LayerProfile.read(tmp_path).steps(4, None)
    assert sorted(found["step_s"]) == pytest.approx(sorted([*whole["step_s"]] * 2))


def test_the_mean_length_that_a_chunk_looks_at_tells_what_was_before_it(tmp_path: Path) -> None:
    whole = LayerProfile.read(profile_of(tmp_path)).steps(4, None)
    rows = [row.split(",") for row in FILES["attention.csv"].replace("kv_prefill", "prefill_key").split()]
    for row in rows[1:]:
        row[1] = str(int(row[1]) + int(row[0]) / 2)
    profile_of(tmp_path, attention="\n".join(map(",".join, rows)))
    found = LayerProfile.read(tmp_path).steps(4, None)
    for name in PROFILE.names:
        np.testing.assert_array_equal(found[name], whole[name])


def test_more_requests_than_were_profiled_go_on_as_the_last_ones(tmp_path: Path) -> None:
    one = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n0,0,{},16,1"
    steps = [
        LayerProfile.read(profile_of(tmp_path, attention=one.format(n))).steps(4, None)["step_s"] for n in (11, 31)
    ]
    dense_s = 4 * 2.0 * 20 / 1e6
    assert steps[1] - steps[0] == pytest.approx(20 * 100 / 1e6 + dense_s, rel=0.02), "100 us for each in lm_head"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": None}, r"attention.csv is missing: a profile of layers has dense.csv, per_sequence.csv and"),
        (
            {"dense": "layer,tokens,latency\nmlp,1,2"},
            r"dense.csv has no column time_us; it needs layer, tokens, time_us",
        ),
        ({"per_sequence": "layer,sequences,time_us\nsampler,one,2"}, "column sequences must hold numbers only"),
        ({"per_sequence": "layer,sequences,time_us\nsampler,1,\nsampler,2,-1"}, "has no row with a time_us above 0"),
        ({"moe": "tokens,time_us\n1,2"}, "moe.csv: a model with a mixture of experts is not added up"),
        ({"dense": "layer,tokens,time_us"}, "dense.csv has no rows"),
        ({"dense": "layer,tokens,time_us\nmlp,1"}, "dense.csv is no table of comma-separated values"),
        ({"dense": ""}, "dense.csv is no table of comma-separated values"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LayerProfile.read(profile_of(tmp_path, **changes))
