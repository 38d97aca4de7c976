"""Parquet and JSON files of a run: columns as designed, whole or not at all, the same bytes for the same input."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix import record

DESIGNED = {
    "REQUESTS": "request_id, arrival_s, sent_s, dispatch_s, first_token_s, end_s, prompt_tokens, output_tokens, "
    "priority, instance_first, instance_last, preemptions, preemption_loss_s, migrations, migration_downtime_s, "
    "migration_gap_s, max_token_gap_s, exec_s, status, error",
    "EVENTS": "time_s, kind, instance_id, request_id, detail",
    "INSTANCES": "time_s, instance_id, running, waiting, free_blocks, total_blocks, head_blocks, freeness, draining",
}
METADATA = {"run_id": "abc", "config": {"qps": 1.5}}


def events(count: int = 3) -> dict[str, Any]:
    return {
        "time_s": np.arange(count) / 10,
        "kind": ["dispatch", "preempt", "dispatch"][:count],
        "instance_id": np.array([0, 15, -1])[:count],
        "request_id": [7, None, 9][:count],
        "detail": [None, "é", ""][:count],
    }


def read(path: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    return columns


@pytest.mark.parametrize("table", DESIGNED)
def test_columns_are_those_of_the_design(table: str) -> None:
    assert getattr(record, table).names == DESIGNED[table].split(", ")


def test_what_is_written_is_read_back_with_nulls_for_none(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    record.write_table(path, record.EVENTS, events(), METADATA)
    assert read(path) == {
        "time_s": [0.0, 0.1, 0.2],
        "kind": ["dispatch", "preempt", "dispatch"],
        "instance_id": [0, 15, None],
        "request_id": [7, None, 9],
        "detail": [None, "é", ""],
    }
    assert record.read_metadata(path) == METADATA


def test_numbers_keep_nan_as_null_infinity_as_such_and_booleans(tmp_path: Path) -> None:
    columns = {
        "time_s": [0.0, 1.0, 2.0],
        "instance_id": [0, 1, 2],
        "running": np.array([1, 2, 3], dtype=np.int64),
        "waiting": [0, 0, 0],
        "free_blocks": [-1, 0, 5],
        "total_blocks": [9, 9, 9],
        "head_blocks": [0, 3, 0],
        "freeness": np.array([np.inf, np.nan, -2.5]),
        "draining": [False, True, False],
    }
    record.write_table(tmp_path / "i.parquet", record.INSTANCES, columns, METADATA)
    found = read(tmp_path / "i.parquet")
    assert found["freeness"] == [np.inf, None, -2.5]
    assert found["draining"] == [False, True, False]
    assert found["free_blocks"] == [-1, 0, 5], "only in a column that may be empty a negative number means none"


def test_empty_tables_can_be_written(tmp_path: Path) -> None:
    record.write_table(tmp_path / "e.parquet", record.EVENTS, {name: [] for name in record.EVENTS.names}, METADATA)
    assert pq.read_table(tmp_path / "e.parquet").num_rows == 0


TEXT = st.text(max_size=5)
ROW = st.tuples(st.floats(allow_nan=False), TEXT, st.none() | st.integers(0, 99), st.none() | TEXT)


@given(st.lists(ROW, max_size=20))
def test_any_rows_survive_and_give_the_same_table_twice(rows: list[tuple[float, str, int | None, str | None]]) -> None:
    time_s, kind, number, detail = ([row[i] for row in rows] for i in range(4))
    columns = {"time_s": time_s, "kind": kind, "instance_id": number, "request_id": number, "detail": detail}
    table = record.table(record.EVENTS, columns, METADATA)
    table.validate(full=True)
    assert table.to_pydict() == columns
    assert table.equals(record.table(record.EVENTS, columns, METADATA), check_metadata=True)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        record.write_table(tmp_path / name, record.EVENTS, events(), METADATA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": None}, "kind"),
        ({"extra": [1, 2, 3]}, "extra"),
        ({"time_s": [0.0]}, "length"),
        ({"time_s": np.array([0.0, np.nan, 1.0])}, "time_s"),
        ({"kind": ["dispatch", None, "dispatch"]}, "kind"),
    ],
)
def test_wrong_columns_are_named(change: dict[str, Any], message: str) -> None:
    columns = {name: column for name, column in (events() | change).items() if column is not None}
    with pytest.raises(ValueError, match=message):
        record.table(record.EVENTS, columns, METADATA)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_write_that_breaks_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def break_off(_table: Any, where: Path, **_options: Any) -> None:
        Path(where).write_bytes(b"half")
        raise fault

    path = tmp_path / "events.parquet"
    path.write_bytes(b"old")
    monkeypatch.setattr(pq, "write_table", break_off)
    with pytest.raises(type(fault)):
        record.write_table(path, record.EVENTS, events(), METADATA)
    assert [file.name for file in tmp_path.iterdir()] == ["events.parquet"]
    assert path.read_bytes() == b"old"


def test_json_has_no_nan(tmp_path: Path) -> None:
    record.write_json(tmp_path / "x.json", {"a": np.float64("nan"), "b": float("inf"), "c": (np.int64(1), True, None)})
    content = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content == {"a": None, "b": "inf", "c": [1, True, None]}
