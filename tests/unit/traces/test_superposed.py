"""A recorded trace scaled up: the same lengths and the same profile of the rate, k times as many requests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llumnix.errors import TraceError
from llumnix.traces import FileTrace, Lengths, SuperposedTrace
from llumnix.traces import reading as reading_module

HEADER = "arrived_at,num_prefill_tokens,num_decode_tokens\n"


def write(directory: Path, rows: list[tuple[float, int, int]]) -> str:
    path = directory / "trace.csv"
    path.write_text(HEADER + "".join(f"{at},{prompt},{output}\n" for at, prompt, output in rows))
    reading_module._read.cache_clear()  # files of one test can share a modification time
    return str(path)


def draw(path: str, num_requests: int) -> Lengths:
    trace = SuperposedTrace(name="superposed", path=path)
    return trace.draw(num_requests, trace.streams(0))


def test_two_copies_share_the_recorded_gaps_and_begin_at_different_lengths(tmp_path: Path) -> None:
    lengths = draw(write(tmp_path, [(0, 1, 10), (4, 2, 20), (6, 3, 30), (16, 4, 40)]), 8)
    assert lengths.stamp_s is not None
    assert lengths.stamp_s.tolist() == [0, 2, 4, 5, 6, 11, 16, 16]
    assert lengths.prompt_tokens.tolist() == [1, 3, 2, 4, 3, 1, 4, 2]
    assert lengths.output_tokens.tolist() == [10, 30, 20, 40, 30, 10, 40, 20]
    assert lengths.label == "trace.csv x 2"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12),
    st.integers(1, 60),
)
def test_each_copy_is_the_file_and_every_row_is_accounted_for(
    tmp_path: Path, rows: list[tuple[int, int, int]], wanted: int
) -> None:
    path = write(tmp_path, rows)
    once = FileTrace(name="file", path=path)
    try:
        recorded = once.draw(len(rows), once.streams(0))
    except TraceError:
        return  # no usable row
    lengths = draw(path, wanted)
    count = len(recorded.prompt_tokens)
    assert len(lengths.prompt_tokens) == len(lengths.output_tokens) == wanted
    assert lengths.rows_in == wanted + sum(lengths.dropped.values())
    assert lengths.stamp_s is not None
    assert recorded.stamp_s is not None
    assert lengths.stamp_s[0] == 0
    assert (np.diff(lengths.stamp_s) >= 0).all()
    assert lengths.stamp_s[-1] <= recorded.stamp_s[-1]
    whole = draw(path, -(-wanted // count) * count)
    pairs = Counter(zip(whole.prompt_tokens.tolist(), whole.output_tokens.tolist(), strict=True))
    copies = -(-wanted // count)
    of_file = Counter(zip(recorded.prompt_tokens.tolist(), recorded.output_tokens.tolist(), strict=True))
    assert pairs == Counter({pair: copies * times for pair, times in of_file.items()})


def test_no_more_requests_than_rows_is_the_file_itself(tmp_path: Path) -> None:
    lengths = draw(write(tmp_path, [(0, 1, 10), (4, 2, 20), (6, 3, 30)]), 2)
    assert lengths.prompt_tokens.tolist() == [1, 2]
    assert lengths.rows_in == 2


def test_a_file_without_times_has_none_when_scaled_up(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nXXX,5,6\nXXX,7,8\n")
    lengths = draw(str(path), 4)
    assert lengths.stamp_s is None
    assert lengths.prompt_tokens.tolist() == [5, 7, 7, 5]


def test_a_missing_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="nothing"):
        draw(str(tmp_path / "nothing.csv"), 5)
