"""Options of trace=file: filters, windows, caps, sampling, early stop, and the account of rows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llumnix.errors import ConfigError, TraceError
from llumnix.traces import FileTrace, Lengths, Stream, TooLong
from llumnix.traces import reading as reading_module

HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def write(tmp_path: Path, *rows: str, header: str = HEADER) -> Path:
    path = tmp_path / "burst.csv"
    path.write_text(header + "".join(f"{row}\n" for row in rows))
    reading_module._read.cache_clear()  # files of one test can share a modification time
    return path


def read(path: Path, num_requests: int = 1000, seed: int = 0, **options: Any) -> Lengths:
    trace = FileTrace(name="file", path=str(path), **options)
    return trace.draw(num_requests, trace.streams(seed))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        "10,GPT-4,100,10,110,Conversation log",
        "20,ChatGPT,200,20,220,Conversation log",
        "15,GPT-4,300,30,330,API log",
        "30,GPT-4,0,0,0,Conversation log",
        "40,GPT-4,7000,8000,15000,Conversation log",
    )


def test_rows_are_sorted_by_time_and_inversions_counted(mixed: Path) -> None:
    lengths = read(mixed)
    assert lengths.stamp_s is not None
    assert lengths.stamp_s.tolist() == [0, 5, 10, 30]
    assert lengths.prompt_tokens.tolist() == [100, 300, 200, 7000]
    assert lengths.inversions == 1


def test_filters_by_model_and_log_type(mixed: Path) -> None:
    lengths = read(mixed, model="GPT-4", log_type="Conversation log")
    assert lengths.prompt_tokens.tolist() == [100, 7000]
    assert lengths.dropped == {"other model": 1, "other log type": 1, "no output token": 1}


def test_failed_rows_are_left_out_or_served_one_token(mixed: Path) -> None:
    lengths = read(mixed, drop_failed=False)
    assert lengths.rows_in == len(lengths.prompt_tokens) == 5
    assert (lengths.prompt_tokens.min(), lengths.output_tokens.min()) == (1, 1)


def test_long_rows_are_clipped_or_dropped(mixed: Path) -> None:
    clipped = read(mixed, max_tokens=6144)
    assert (clipped.prompt_tokens.max(), clipped.output_tokens.max()) == (6144, 6144)
    dropped = read(mixed, max_tokens=6144, too_long=TooLong.drop)
    assert dropped.dropped == {"no output token": 1, "longer than max_tokens": 1}
    in_all = read(mixed, max_total_tokens=220)
    assert in_all.prompt_tokens.tolist() == [100, 200]
    assert in_all.dropped == {"no output token": 1, "longer than max_total_tokens": 2}


def test_the_window_counts_from_the_first_row(mixed: Path) -> None:
    lengths = read(mixed, start_s=5, end_s=30)
    assert lengths.prompt_tokens.tolist() == [300, 200]
    assert lengths.stamp_s is not None
    assert lengths.stamp_s.tolist() == [0, 5]
    assert lengths.dropped == {"outside the time window": 2, "no output token": 1}
    with pytest.raises(TraceError, match=r"no usable row .*outside the time window"):
        read(mixed, start_s=1000)


def test_reading_stops_soon_after_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "BATCH_ROWS", 100)
    path = write(tmp_path, *(f"{second},GPT-4,1,1,2,API log" for second in range(5000)))
    lengths = read(path, num_requests=10_000, end_s=150)
    assert len(lengths.prompt_tokens) == 150
    assert lengths.rows_in == 300


def test_reading_stops_at_the_number_of_requests(tmp_path: Path) -> None:
    path = write(tmp_path, *(f"{second},GPT-4,1,{second % 2},2,API log" for second in range(1000)))
    lengths = read(path, num_requests=10)
    assert len(lengths.prompt_tokens) == 10
    assert (lengths.rows_in, lengths.dropped) == (20, {"no output token": 10})


def test_a_filter_on_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "3,4", header="Request tokens,Response tokens\n")
    with pytest.raises(TraceError, match=r"does not tell models apart: type trace\.model=null"):
        read(path, model="GPT-4")
    with pytest.raises(TraceError, match=r"has no log types: type trace\.log_type=null"):
        read(path, log_type="API log")
    with pytest.raises(TraceError, match=r"has no time stamps: leave out trace\.start_s and trace\.end_s"):
        read(path, start_s=1)


def test_samples_are_those_of_the_artifact(tmp_path: Path) -> None:
    path = write(tmp_path, *(f"{row},GPT-4,{row + 1},7,8,API log" for row in range(50)))
    lengths = read(path, num_requests=20, sample=True)
    rng = random.Random(0xCADE)
    expected = rng.sample(range(50), 20)
    rng.shuffle(expected)
    assert (lengths.prompt_tokens - 1).tolist() == expected
    assert lengths.stamp_s is None
    assert lengths.dropped == {"not in the sample": 30}


@pytest.mark.parametrize("stream", list(Stream))
def test_samples_of_new_seeds_differ_and_repeat_no_row(stream: Stream, tmp_path: Path) -> None:
    path = write(tmp_path, *(f"{row},GPT-4,{row + 1},7,8,API log" for row in range(50)))
    draws = [read(path, 20, seed, sample=True, stream=stream).prompt_tokens.tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert all(len(set(draw)) == 20 for draw in draws)


def test_coarse_stamps_are_spread_within_their_tick(tmp_path: Path) -> None:
    path = write(tmp_path, *(f"{3 * (row // 20)},GPT-4,1,1,2,API log" for row in range(400)))
    coarse, spread = read(path).stamp_s, read(path, stamp_resolution_s=3).stamp_s
    assert coarse is not None
    assert spread is not None
    assert (np.diff(coarse) == 0).mean() > 0.9
    assert (np.diff(spread) > 0).all()
    assert abs(spread - coarse).max() <= 3


def test_a_file_is_read_again_after_a_change(tmp_path: Path) -> None:
    import os

    path = write(tmp_path, "1,GPT-4,1,1,2,API log")
    assert len(read(path).prompt_tokens) == 1
    path.write_text(HEADER + "1,GPT-4,1,1,2,API log\n" * 2)
    os.utime(path, ns=(0, 1))
    assert len(read(path).prompt_tokens) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, r"trace\.path is not set: type trace\.path=FILE"),
        ({"max_tokens": 0}, r"trace\.max_tokens must be at least 1 or null, got 0"),
        ({"max_total_tokens": -5}, r"trace\.max_total_tokens must be at least 1 or null, got -5"),
        ({"start_s": float("nan")}, r"trace\.start_s must be 0 or a positive number"),
        ({"start_s": 5, "end_s": 5}, r"trace\.end_s must be later than trace\.start_s=5"),
        ({"end_s": float("nan")}, r"trace\.end_s must be later"),
        ({"stamp_resolution_s": -1}, r"trace\.stamp_resolution_s must be 0 or positive"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FileTrace(name="file", **{"path": "x.csv", **options})


cells = st.one_of(st.integers(-2, 40).map(str), st.sampled_from(["", "x", "7.5", "8.0", "1e99", "nan", "9" * 30]))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(cells, st.sampled_from(["GPT-4", "ChatGPT", ""]), cells, cells), max_size=150),
    num_requests=st.integers(1, 200),
    options=st.fixed_dictionaries(
        {},
        optional={
            "model": st.just("GPT-4"),
            "drop_failed": st.booleans(),
            "max_tokens": st.integers(1, 30),
            "too_long": st.sampled_from(TooLong),
            "max_total_tokens": st.integers(1, 60),
            "start_s": st.floats(0, 10),
            "end_s": st.floats(11, 40),
            "sample": st.booleans(),
            "stamp_resolution_s": st.floats(0, 5),
        },
    ),
)
def test_every_row_is_kept_or_dropped_for_a_reason(
    tmp_path: Path, rows: list[tuple[str, str, str, str]], num_requests: int, options: dict[str, Any]
) -> None:
    path = write(tmp_path, *(f"{stamp},{model},{a},{b},0,API log" for stamp, model, a, b in rows))
    try:
        lengths = read(path, num_requests, **options)
    except TraceError:
        return
    kept = len(lengths.prompt_tokens)
    assert len(lengths.output_tokens) == kept <= num_requests
    assert lengths.rows_in == kept + sum(lengths.dropped.values()) <= len(rows)
    assert all(count > 0 for count in lengths.dropped.values())
    if kept < num_requests and not lengths.dropped.get("outside the time window"):
        assert lengths.rows_in == len(rows)
    for tokens in (lengths.prompt_tokens, lengths.output_tokens):
        assert 1 <= tokens.min() <= tokens.max() <= options.get("max_tokens", 10**9)
    if lengths.stamp_s is not None:
        assert lengths.stamp_s[0] == 0
        assert (np.diff(lengths.stamp_s) >= 0).all()
