"""What a run leaves behind: the columns of the parquet files, and writing them whole or not at all.

One schema for the simulated and for the real world. The files hold nothing that depends on when or where they were
written, so the same config and seed give the same bytes; wall-clock facts belong to run.json. What the numbers mean
is in llumnix.metrics; which directory a run gets is the runner's business.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 2
METADATA_KEY = b"llumnix"
"""Key of the parquet metadata under which every file carries its run's config, versions and run id, as JSON."""

Columns = Mapping[str, "np.ndarray[Any, Any] | Sequence[Any]"]

_NAME = pa.dictionary(pa.int32(), pa.string())

REQUESTS = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),  # row of the workload
        pa.field("arrival_s", pa.float64(), nullable=False),  # scheduled
        pa.field("sent_s", pa.float64()),  # left the client
        pa.field("dispatch_s", pa.float64()),  # given to an instance for the first time
        pa.field("first_token_s", pa.float64()),
        pa.field("end_s", pa.float64()),  # last token, or the moment of rejection or failure
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("output_tokens", pa.int64(), nullable=False),
        pa.field("priority", pa.int8(), nullable=False),  # llumnix.request.Priority
        pa.field("instance_first", pa.int32()),
        pa.field("instance_last", pa.int32()),
        pa.field("preemptions", pa.int32(), nullable=False),
        pa.field("preemption_loss_s", pa.float64(), nullable=False),
        pa.field("migrations", pa.int32(), nullable=False),
        pa.field("migration_downtime_s", pa.float64(), nullable=False),
        pa.field("migration_gap_s", pa.float64(), nullable=False),  # from the last token before each to the next one
        pa.field("max_token_gap_s", pa.float64()),
        pa.field("exec_s", pa.float64(), nullable=False),  # sum of the steps that the request was part of
        pa.field("status", _NAME, nullable=False),  # finished, rejected, failed
        pa.field("error", pa.string()),
    ]
)

EVENTS = pa.schema(
    [
        pa.field("time_s", pa.float64(), nullable=False),
        pa.field("kind", _NAME, nullable=False),
        pa.field("instance_id", pa.int32()),
        pa.field("request_id", pa.int64()),
        pa.field("detail", pa.string()),
    ]
)

INSTANCES = pa.schema(
    [
        pa.field("time_s", pa.float64(), nullable=False),
        pa.field("instance_id", pa.int32(), nullable=False),
        pa.field("running", pa.int32(), nullable=False),
        pa.field("waiting", pa.int32(), nullable=False),
        pa.field("free_blocks", pa.int32(), nullable=False),
        pa.field("total_blocks", pa.int32(), nullable=False),
        pa.field("head_blocks", pa.int32(), nullable=False),  # that the first waiting request needs; 0 if none waits
        pa.field("freeness", pa.float64()),  # inf for an idle instance
        pa.field("draining", pa.bool_(), nullable=False),
    ]
)

STEPS = pa.schema(  # engine.record_steps; a row is a run of steps of one batch, of one step on a real engine
    [
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("end_s", pa.float64(), nullable=False),  # of the last of them
        pa.field("instance_id", pa.int32(), nullable=False),
        pa.field("steps", pa.int32(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),  # of all of them, without the gaps between them
        pa.field("batch", pa.int32(), nullable=False),  # requests
        pa.field("tokens", pa.int32(), nullable=False),  # computed in each; more than the batch if there are prompts
    ]
)


def table(schema: pa.Schema, columns: Columns, metadata: Mapping[str, Any]) -> pa.Table:
    """A checked table: exactly the columns of the schema, all of one length, `metadata` as JSON in the schema.

    In a column that may be empty, NaN and negative ids stand for "none" and become nulls; a list may hold None.
    Raises ValueError naming the column that is missing, unknown, of another length, or empty where it must not be.
    """
    if wrong := set(columns) ^ set(schema.names):
        raise ValueError(f"columns {sorted(wrong)} are missing from the records or unknown to the schema")
    if len(lengths := {len(column) for column in columns.values()}) > 1:
        sizes = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise ValueError(f"columns of records differ in length ({sizes}: {len(lengths)} lengths)")
    arrays = [_array(field, columns[field.name]) for field in schema]
    blob = json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return pa.Table.from_arrays(arrays, schema=schema.with_metadata({METADATA_KEY: blob.encode()}))


def write_table(path: Path, schema: pa.Schema, columns: Columns, metadata: Mapping[str, Any]) -> None:
    """Write one parquet file, whole or not at all. Raises OSError if the disk is full or not writable."""
    checked = table(schema, columns, metadata)
    with replacing(path) as temporary:
        pq.write_table(checked, temporary, compression="zstd", compression_level=1)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON file, whole or not at all; a NaN becomes null, since JSON has no name for it."""
    text = json.dumps(_plain(content), indent=1, sort_keys=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_metadata(path: Path) -> dict[str, Any]:
    """The run's config, versions and run id as they were stored in one of its parquet files."""
    metadata = pq.read_schema(path).metadata or {}
    found: dict[str, Any] = json.loads(metadata[METADATA_KEY])
    return found


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there when the block ends well, remove it when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _array(field: pa.Field, column: np.ndarray[Any, Any] | Sequence[Any]) -> pa.Array:
    """An Arrow array from raw buffers: pa.array() would import pandas, half a second that a short run has not got."""
    if pa.types.is_dictionary(field.type):
        codes: dict[str, int] = {}
        numbers = np.fromiter((codes.setdefault(name, len(codes)) for name in column), np.int32, len(column))
        if None in codes:
            raise ValueError(f"column {field.name} of the records has empty values")
        return pa.DictionaryArray.from_arrays(_numbers(pa.int32(), numbers, None), _strings(list(codes)))
    if pa.types.is_string(field.type):
        return _strings(column)
    kind = np.dtype(bool if pa.types.is_boolean(field.type) else field.type.to_pandas_dtype())
    empty: np.ndarray[Any, Any] | None = None
    if not isinstance(column, np.ndarray):
        if None in column:
            empty = np.array([value is None for value in column])
            column = [0 if value is None else value for value in column]
        column = np.array(column, dtype=kind)
    elif field.nullable and column.dtype.kind == "i":
        empty = column < 0
    if column.dtype.kind == "f":
        empty = np.isnan(column) if empty is None else empty | np.isnan(column)
    if empty is not None and not field.nullable and empty.any():
        raise ValueError(f"column {field.name} of the records has empty values")
    return _numbers(field.type, column.astype(kind, casting="same_kind", copy=False), empty)


def _numbers(kind: pa.DataType, column: np.ndarray[Any, Any], empty: np.ndarray[Any, Any] | None) -> pa.Array:
    """Numbers of the type `kind`, or booleans; null where `empty` is True."""
    values = np.packbits(column, bitorder="little") if column.dtype == bool else np.ascontiguousarray(column)
    valid = pa.py_buffer(np.packbits(~empty, bitorder="little")) if empty is not None and empty.any() else None
    return pa.Array.from_buffers(kind, len(column), [valid, pa.py_buffer(values)])


def _strings(column: Sequence[str | None] | np.ndarray[Any, Any]) -> pa.Array:
    """Strings, null where the value is None."""
    known = {value: b"" if value is None else value.encode() for value in set(column)}  # rows can be millions
    encoded = [known[value] for value in column]
    ends = np.zeros(len(encoded) + 1, dtype=np.int32)
    np.cumsum(np.fromiter(map(len, encoded), np.int32, len(encoded)), out=ends[1:])
    empty = np.fromiter((value is None for value in column), bool, len(encoded))
    valid = pa.py_buffer(np.packbits(~empty, bitorder="little")) if empty.any() else None
    return pa.Array.from_buffers(
        pa.string(), len(encoded), [valid, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    )


def _plain(value: Any) -> Any:
    """The same value in the types that JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    return value
