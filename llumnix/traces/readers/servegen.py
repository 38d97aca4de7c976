"""ServeGen client chunks: rates and length distributions over time, from which requests are drawn.

`chunk-N-trace.csv` (no header) has one line per bin of 600 s: start s, rate requests/s, CV, Gamma or Weibull, shape,
scale. `chunk-N-dataset.json` beside it has length distributions for windows of 21,600 s.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from llumnix.errors import TraceError
from llumnix.request import FloatArray, IntArray
from llumnix.traces.readers.row import BROKEN, Row, seconds, tokens

BIN_S = 600.0
WINDOW_S = 21_600.0
NAME = "ServeGen chunk"
NO_LENGTHS = Row(None, 0, 0, unusable="no length distribution")
_FILE_NAME = re.compile(r"(.*)-(trace\.csv|dataset\.json)(?:\.gz)?")


class _Distribution(NamedTuple):
    values: IntArray
    weights: FloatArray


def is_bin(record: Sequence[str]) -> bool:
    """Whether a first CSV record is a bin of ServeGen rather than a header."""
    if len(record) != 6 or record[3] not in {"Gamma", "Weibull", ""}:
        return False
    try:
        seconds(record[0])
    except ValueError:
        return False
    return True


def is_dataset(path: Path) -> bool:
    """Whether the name is that of a file of length distributions."""
    match = _FILE_NAME.fullmatch(path.name)
    return match is not None and match[2] == "dataset.json"


def sibling(path: Path, kind: str) -> Path:
    """The file of `kind` (trace.csv, dataset.json) that belongs to the same client as `path`, plain or gzip."""
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        raise TraceError(f"{path} looks like a ServeGen chunk: its name must end in -trace.csv or -dataset.json.")
    plain = path.with_name(f"{match[1]}-{kind}")
    packed = path.with_name(f"{match[1]}-{kind}.gz")
    return packed if packed.exists() and not plain.exists() else plain


def read_windows(dataset: TextIO, path: Path) -> dict[str, object]:
    """The content of a dataset file: for each window start, length distributions as text."""
    try:
        windows = json.load(dataset)
    except ValueError:
        windows = None
    if not isinstance(windows, dict):
        raise TraceError(f"{path} is not a ServeGen dataset: it must be one JSON object of time windows.")
    return windows


def rows(bins: Iterator[list[str]], windows: dict[str, object], seed: int) -> Iterator[Row]:
    """Requests drawn bin by bin; a broken bin counts as one broken row."""
    rng = np.random.default_rng(seed)
    lengths: dict[int, tuple[_Distribution, _Distribution] | None] = {}
    for record in bins:
        if not record:
            continue
        try:
            start_s, rate, pattern = seconds(record[0]), seconds(record[1]), record[3]
            stamps = _stamps(pattern, seconds(record[4]), seconds(record[5]), rng) if rate > 0 else np.empty(0)
        except (ValueError, IndexError):
            yield BROKEN
            continue
        window = int(start_s // WINDOW_S * WINDOW_S)
        if window not in lengths:
            lengths[window] = _lengths(windows.get(str(window)))
        drawn = lengths[window]
        if drawn is None:
            yield from repeat(NO_LENGTHS, len(stamps))
            continue
        prompts, outputs = (rng.choice(side.values, size=len(stamps), p=side.weights) for side in drawn)
        for stamp_s, prompt, output in zip(stamps, prompts, outputs, strict=True):
            yield Row(start_s + float(stamp_s), int(prompt), int(output))


def _lengths(window: object) -> tuple[_Distribution, _Distribution] | None:
    """Prompt and output distributions of a window, None where it has none or they are broken."""
    if not isinstance(window, dict):
        return None
    try:
        return _distribution(window["input_tokens"]), _distribution(window["output_tokens"])
    except (KeyError, ValueError, TypeError, SyntaxError, AttributeError):
        return None


def _distribution(text: str) -> _Distribution:
    weight_of = ast.literal_eval(text)
    values = np.array([tokens(value) for value in weight_of], dtype=np.int64)
    weights = np.array([seconds(weight) for weight in weight_of.values()])
    if not len(values) or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(text)
    return _Distribution(values, weights / weights.sum())


def _stamps(pattern: str, shape: float, scale: float, rng: np.random.Generator) -> FloatArray:
    """Times (s after the start of the bin) whose gaps have the given distribution, up to the end of the bin."""
    if pattern not in {"Gamma", "Weibull"} or shape <= 0 or scale <= 0:
        raise ValueError(pattern)
    pieces: list[FloatArray] = []
    reached_s = 0.0
    while reached_s < BIN_S:
        gaps = rng.gamma(shape, scale, 256) if pattern == "Gamma" else rng.weibull(shape, 256) * scale
        pieces.append(reached_s + np.cumsum(gaps))
        reached_s = float(pieces[-1][-1])
    stamps = np.concatenate(pieces)
    return stamps[stamps < BIN_S]
