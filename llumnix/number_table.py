"""Tables of measurements from CSV and parquet files: their columns by name, and the rows that are measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from llumnix.errors import ConfigError
from llumnix.request import FloatArray


def read_table(path: Path, content: BinaryIO | None = None) -> pa.Table:
    """Return a table by the suffix of its file, or from the part of a CSV file's content that is given.

    Blanks around the names of columns are dropped. ConfigError if it is no table or has no rows.
    """
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else pa_csv.read_csv(content or path)
    except pa.ArrowInvalid as error:
        kind = "parquet file" if path.suffix == ".parquet" else "table of comma-separated values"
        raise ConfigError(f"{path} is no {kind}: {str(error).splitlines()[0]}.") from None
    if not table.num_rows:
        raise ConfigError(f"{path} has no rows.")
    return table.rename_columns([name.strip().removeprefix("\ufeff") for name in table.column_names])


def check_columns(path: Path, table: pa.Table, names: Sequence[str]) -> None:
    """Raise ConfigError if a column is missing."""
    if absent := [name for name in names if name not in table.column_names]:
        raise ConfigError(
            f"{path} has no column {absent[0]}; it needs {', '.join(names)} and has {', '.join(table.column_names)}."
        )


def usable_rows(path: Path, table: pa.Table, sizes: Sequence[str], time: str) -> pa.Table:
    """Return the rows that are measurements: every size 0 or more, and a time above 0.

    ConfigError if a column is missing or holds something else than numbers, or if no row is left.
    """
    check_columns(path, table, [*sizes, time])
    usable = floats(path, table, time) > 0
    for name in sizes:
        usable &= floats(path, table, name) >= 0
    if not usable.any():
        raise ConfigError(f"{path} has no row with a {time} above 0 and without a missing or negative value.")
    return table.filter(pa.array(usable))


def floats(path: Path, table: pa.Table, name: str) -> FloatArray:
    """A column of numbers, NaN where one is missing or infinite; ConfigError if it holds something else."""
    kind = table.schema.field(name).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ConfigError(f"{path}: column {name} must hold numbers only, and it holds values of type {kind}.")
    column = np.array(table[name].to_numpy(), dtype=np.float64)
    column[np.isinf(column)] = np.nan
    return column
