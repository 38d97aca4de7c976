"""A profile of single layers, added up to steps: dense.csv, per_sequence.csv and attention.csv of one directory.

dense.csv (layer, tokens, time_us): layers whose time hangs on the tokens of the step. per_sequence.csv (layer,
sequences, time_us): what is done once for each request, such as sampling. attention.csv (prefill_chunk, kv_prefill,
n_decode, kv_decode, time_us): attention of one layer over a chunk behind kv_prefill tokens and n_decode decodes of
kv_decode tokens each. A step is every layer as often as the model has it, and nothing between them: no launch, no
scheduler, no exchange between GPUs.

Times may also be time_ns, time_ms or time_s; prefill_key, the mean length that the tokens of a chunk look at, may stand
for kv_prefill. Other columns are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from llumnix.engines.sim.dense_line import DenseLine
from llumnix.errors import ConfigError
from llumnix.number_table import check_columns, floats, read_table, usable_rows
from llumnix.profile import pairs
from llumnix.record import Columns
from llumnix.request import FloatArray

DENSE, PER_SEQUENCE, ATTENTION = "dense.csv", "per_sequence.csv", "attention.csv"
ONCE = ("embedding", "final_layernorm", "lm_head", "sampler")
"""Of the dense layers, those that a model has once; the others it has once in each of its layers."""
TWICE = ("layernorm",)
"""Those that a layer has twice: before attention and before the MLP."""
BEYOND = {"moe.csv": "a mixture of experts", "linear_attention.csv": "linear attention"}
"""Files that profiles of other models have, whose layers are not added up here."""
_SIZES = {
    DENSE: ("tokens",),
    PER_SEQUENCE: ("sequences",),
    ATTENTION: ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"),
}
_UNITS = {"time_us": 1.0, "time_ns": 1e-3, "time_ms": 1e3, "time_s": 1e6}
"""Columns that a time may be in, and how many microseconds one of each is."""


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """The three tables, sizes and `us` in each, the layer's name in two of them; and how many rows were no use."""

    dense: dict[str, np.ndarray]
    per_sequence: dict[str, np.ndarray]
    attention: dict[str, np.ndarray]
    unusable: dict[str, int]

    @classmethod
    def read(cls, directory: Path) -> LayerProfile:
        """Read the files of a directory; rows without a time, or with a negative number, are left out.

        ConfigError for a file or a column that is missing or holds no numbers, and for a model of other layers.
        """
        for name, layers in BEYOND.items():
            if (directory / name).exists():
                raise ConfigError(f"{directory / name}: a model with {layers} is not added up from its layers here.")
        unusable: dict[str, int] = {}
        dense, per_sequence, attention = (_read(directory / name, sizes, unusable) for name, sizes in _SIZES.items())
        return cls(dense, per_sequence, attention, unusable)

    def dense_line(self, layers: int) -> DenseLine:
        """Time of all layers of dense.csv, of a model with so many."""
        tokens = np.unique(self.dense["tokens"])
        return DenseLine.through(tokens, _sum_of_layers(self.dense, "tokens", tokens, layers) / 1e6)

    def steps(self, layers: int, kv_tokens: int | None) -> Columns:
        """Return a step for each row of attention.csv, with the columns of llumnix.profile.PROFILE.

        `layers`: how many layers the model has. Left out are steps that no engine runs: of more tokens than dense.csv
        goes, and, if `kv_tokens` is known, of more KV than there is.
        """
        chunk, context, decodes, decode_context = (
            np.rint(self.attention[name]).astype(np.int64) for name in _SIZES[ATTENTION]
        )
        decode_context = decodes * decode_context
        tokens = chunk + decodes
        possible = (tokens > 0) & (tokens <= self.dense["tokens"].max())
        if kv_tokens is not None:
            possible &= chunk + np.where(chunk > 0, context, 0) + decode_context <= kv_tokens
        prefills = (chunk > 0).astype(np.int64)
        attention_us = layers * self.attention["us"]
        dense_us = 1e6 * self.dense_line(layers).at(tokens)
        sequence_us = _sum_of_layers(self.per_sequence, "sequences", prefills + decodes, None)
        work = [pairs(c, k) for c, k in zip(chunk, context, strict=True)]
        return {
            "prefill_requests": prefills[possible],
            "prefill_tokens": chunk[possible],
            "prefill_context_tokens": (prefills * context)[possible],
            "prefill_pairs": np.array(work, dtype=np.int64)[possible],
            "decode_requests": decodes[possible],
            "decode_context_tokens": decode_context[possible],
            "step_s": (attention_us + dense_us + sequence_us)[possible] / 1e6,
        }


def _read(path: Path, sizes: tuple[str, ...], unusable: dict[str, int]) -> dict[str, np.ndarray]:
    """The usable rows of one file; how many others there are is added to `unusable`."""
    if not path.exists():
        raise ConfigError(f"{path} is missing: a profile of layers has {DENSE}, {PER_SEQUENCE} and {ATTENTION}.")
    table = read_table(path)
    names = ["layer"] if path.name != ATTENTION else []
    if "prefill_key" in table.column_names and "kv_prefill" not in table.column_names:
        key, chunk = (floats(path, table, name) for name in ("prefill_key", "prefill_chunk"))
        table = table.append_column("kv_prefill", pa.array(np.where(chunk > 0, key - chunk / 2, 0)))
    time = next((unit for unit in _UNITS if unit in table.column_names), "time_us")
    check_columns(path, table, [*names, *sizes, time])
    rows = usable_rows(path, table, sizes, time)
    if rows.num_rows < table.num_rows:
        unusable[path.name] = table.num_rows - rows.num_rows
    columns = {name: floats(path, rows, name) for name in sizes} | {"us": _UNITS[time] * floats(path, rows, time)}
    return columns | {name: rows[name].to_numpy() for name in names}


def _sum_of_layers(table: dict[str, np.ndarray], size: str, sizes: FloatArray, layers: int | None) -> FloatArray:
    """Time in us of all layers of `table` at each of `sizes`. Without `layers` each counts once."""
    total = np.zeros(len(sizes))
    for name in dict.fromkeys(table["layer"].tolist()):
        rows = table["layer"] == name
        count = 1 if layers is None or name in ONCE else 2 * layers if name in TWICE else layers
        total += count * _on_line(sizes, table[size][rows], table["us"][rows])
    return total


def _on_line(sizes: FloatArray, at: FloatArray, us: FloatArray) -> FloatArray:
    """Times on lines between the measured ones, or their means where one size was measured again.

    Below the smallest size a GPU takes as long; beyond the largest one the line to it from half of it goes on.
    """
    points, place = np.unique(at, return_inverse=True)
    mean_us = np.bincount(place, us) / np.bincount(place)
    found = np.interp(sizes, points, mean_us)
    half = points[-1] / 2
    slope = max(0.0, (mean_us[-1] - np.interp(half, points, mean_us)) / half)
    return np.asarray(found + slope * np.maximum(0, sizes - points[-1]))
