"""A profile of single layers, added up to steps: dense.csv, per_sequence.csv and attention.csv of one directory.

dense.csv (layer, tokens, time_us): layers whose time hangs on the tokens of the step. per_sequence.csv (layer,
sequences, time_us): what is done once for each request, such as sampling. attention.csv (prefill_chunk, kv_prefill,
n_decode, kv_decode, time_us): attention of one layer over a chunk behind kv_prefill tokens and n_decode decodes of
kv_decode tokens each. A step is every layer as often as the model has it, and nothing between them: no launch, no
scheduler.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from llumnix.errors import ConfigError
from llumnix.profile import pairs
from llumnix.record import Columns
from llumnix.request import FloatArray

DENSE, PER_SEQUENCE, ATTENTION = "dense.csv", "per_sequence.csv", "attention.csv"
ONCE = ("embedding", "final_layernorm")
"""Of the dense layers, those that a model has once; the others it has once in each of its layers."""
TWICE = ("layernorm",)
"""Those that a layer has twice: before attention and before the MLP."""
_COLUMNS = {
    DENSE: ("layer", "tokens", "time_us"),
    PER_SEQUENCE: ("layer", "sequences", "time_us"),
    ATTENTION: ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"),
}


def steps_of_layers(directory: Path, layers: int, kv_tokens: int | None) -> Columns:
    """Return a step for each row of attention.csv, with the columns of llumnix.profile.PROFILE.

    `layers`: how many layers the model has. Left out are steps that no engine runs: of more tokens than dense.csv
    goes, and, if `kv_tokens` is known, of more KV than there is. ConfigError for a missing file or column.
    """
    dense, per_sequence, attention = (read_csv(directory / name, columns) for name, columns in _COLUMNS.items())
    chunk, context = _integers(attention["prefill_chunk"]), _integers(attention["kv_prefill"])
    decodes, decode_context = _integers(attention["n_decode"]), _integers(attention["kv_decode"])
    decode_context = decodes * decode_context
    tokens = chunk + decodes
    possible = (tokens > 0) & (tokens <= _floats(dense["tokens"]).max())
    if kv_tokens is not None:
        possible &= chunk + np.where(chunk > 0, context, 0) + decode_context <= kv_tokens
    prefills = (chunk > 0).astype(np.int64)
    attention_us = layers * _floats(attention["time_us"])
    dense_us = _sum_of_layers(dense, "tokens", tokens, layers)
    sequence_us = _sum_of_layers(per_sequence, "sequences", prefills + decodes, None)
    return {
        "prefill_requests": prefills[possible],
        "prefill_tokens": chunk[possible],
        "prefill_context_tokens": (prefills * context)[possible],
        "prefill_pairs": np.array([pairs(c, k) for c, k in zip(chunk, context, strict=True)], dtype=np.int64)[possible],
        "decode_requests": decodes[possible],
        "decode_context_tokens": decode_context[possible],
        "step_s": (attention_us + dense_us + sequence_us)[possible] / 1e6,
    }


def read_csv(path: Path, columns: tuple[str, ...], content: BinaryIO | None = None) -> pa.Table:
    """Return the named columns of a CSV file, or of the part of its content that is given.

    ConfigError says what is missing or is no number.
    """
    try:
        table = pa_csv.read_csv(content or path)
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing: a profile of layers has {DENSE}, {PER_SEQUENCE} and {ATTENTION}."
        ) from None
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path} is no table of comma-separated values: {str(error).splitlines()[0]}.") from None
    if absent := [name for name in columns if name not in table.column_names]:
        raise ConfigError(
            f"{path} has no column {absent[0]}; it needs {', '.join(columns)} and has {', '.join(table.column_names)}."
        )
    if not table.num_rows:
        raise ConfigError(f"{path} has no rows.")
    for name in columns:
        kind = table.schema.field(name).type
        if name != "layer" and not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise ConfigError(f"{path}: column {name} must hold numbers only, and it holds values of type {kind}.")
        if table[name].null_count:
            raise ConfigError(f"{path}: column {name} has {table[name].null_count} empty values.")
    return table.select(list(columns))


def _sum_of_layers(table: pa.Table, size: str, sizes: FloatArray, layers: int | None) -> FloatArray:
    """Time in us of all layers of `table` at each of `sizes`, on lines between the measured ones.

    Without `layers` each counts once.
    """
    names, at, time_us = table["layer"].to_numpy(), _floats(table[size]), _floats(table["time_us"])
    total = np.zeros(len(sizes))
    for name in dict.fromkeys(names.tolist()):
        rows = names == name
        order = np.argsort(at[rows])
        count = 1 if layers is None or name in ONCE else 2 * layers if name in TWICE else layers
        total += count * np.interp(sizes, at[rows][order], time_us[rows][order])
    return total


def _integers(column: pa.ChunkedArray) -> FloatArray:
    return np.asarray(column.to_numpy()).astype(np.int64)


def _floats(column: pa.ChunkedArray) -> FloatArray:
    return np.asarray(column.to_numpy(), dtype=np.float64)
