"""From run directories to a tidy frame: one row per run, configuration beside results. Reads files, runs nothing.

A run lives in outputs/<experiment>/runs/<id>/: run.json (what was asked) with summary.json (it is done) or failure.json
(it broke); in runs/.<id>.part/ while it is written. requests.parquet and its siblings are opened only by those who ask
for rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import words
from llumnix.record import SCHEMA_VERSION

OUTPUTS = Path("outputs")


class State(StrEnum):
    """What the files of a run say about it. A run that is under way looks like one that was killed."""

    DONE = "done"
    FAILED = "failed"
    UNFINISHED = "unfinished"


def runs(outputs: Path = OUTPUTS, experiment: str = "*") -> pd.DataFrame:
    """One row per run directory of `experiment` (a glob), sorted by directory; an empty frame if there is none.

    Columns: experiment, run_id, directory, state, reason; every leaf of the resolved config, dotted
    (`config.trace.label`); its top-level scalars and the names of its groups once more under short names (`qps`,
    `trace` for `config.trace.name`); workload.*, wall_s, started_at, commit, dirty; the scalars of summary.json.
    Broken JSON makes a run UNFINISHED with the reason, never an exception.
    """
    found = sorted(path for path in outputs.glob(f"{experiment}/runs/*") if path.is_dir())
    whole = [path for path in found if not path.name.startswith(".")]
    parts = [path for path in found if path.name.endswith(".part") and path.with_name(path.name[1:-5]) not in whole]
    rows = [_row(path) for path in whole] + [_being_written(path) for path in parts]
    columns = ["experiment", "run_id", "directory", "state", "reason"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def requests(directories: Sequence[Path], columns: Sequence[str]) -> pd.DataFrame:
    """The named columns of requests.parquet of several runs, one row per request, with run_id in front."""
    frames = []
    for directory in directories:
        frame = pd.read_parquet(directory / "requests.parquet", columns=list(columns))
        frame.insert(0, "run_id", directory.name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["run_id", *columns])


def table(directory: Path, name: str) -> pd.DataFrame:
    """A whole table of one run: requests, events, instances or steps; an enumerated column comes as plain strings.

    Without that file the program ends with one sentence, exit 2.
    """
    path = directory / f"{name}.parquet"
    if not path.exists():
        how = ", which engine.record_steps=true writes" if name == "steps" else ""
        words.stop(f"The run in {directory} has no {path.name}{how}: take that run away, or make it again.")
    return pd.read_parquet(path)


def rows(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The runs one by one."""
    return [{str(key): value for key, value in run.items()} for run in runs.to_dict("records")]


def first_run(runs: pd.DataFrame) -> dict[str, Any]:
    """The run of the lowest seed and repeat: the one whose course over time a figure shows."""
    return rows(runs.sort_values(["seed", "repeat"]).head(1))[0]


def replicate(run: Mapping[str, Any]) -> str:
    """What tells apart runs of one point."""
    return f"{run['seed']}.{run['repeat']}"


def matching(frame: pd.DataFrame, wanted: Mapping[str, str]) -> pd.DataFrame:
    """The rows with the wanted values in their columns: `seed=0,1` wants either, and numbers compare as numbers."""
    for column, values in wanted.items():
        allowed = {_as_number(value) for value in values.split(",")}
        here = frame[column].map(_as_number) if column in frame else pd.Series("", index=frame.index)
        frame = frame[here.isin(allowed)]
    return frame


def _as_number(value: object) -> object:
    try:
        return float(str(value))
    except ValueError:
        return str(value)


def _being_written(part: Path) -> dict[str, Any]:
    run_id = part.name.removeprefix(".").removesuffix(".part")
    return _blank(part, run_id) | {"reason": "being written, or its process was killed"}


def _blank(directory: Path, run_id: str) -> dict[str, Any]:
    experiment = directory.parent.parent.name
    row = {"experiment": experiment, "run_id": run_id, "directory": directory, "state": State.UNFINISHED}
    return row | {"reason": "", "workload.synthetic": False}


def _row(directory: Path) -> dict[str, Any]:
    row = _blank(directory, directory.name)
    try:
        run = _json(directory / "run.json")
        summary = _json(directory / "summary.json")
        failure = _json(directory / "failure.json")
    except ValueError as error:
        return row | {"reason": str(error)}
    if run is not None:
        row |= _asked(run)
    if summary is not None and run is not None:
        version = run.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            return row | {"reason": f"records of schema version {version}, this program reads {SCHEMA_VERSION}"}
        return row | {"state": State.DONE} | summary
    if failure is not None:
        return row | {"state": State.FAILED, "reason": str(failure.get("error", "no reason recorded"))}
    return row | {"reason": "no summary.json: running, or interrupted" if run else "no run.json"}


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a file, None if there is no file; ValueError if it holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, not an object")
    return content


def _asked(run: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that were known before the run began."""
    config = run.get("config") or {}
    row = {f"config.{key}": value for key, value in _flat(config)}
    for key, value in config.items():
        if not isinstance(value, dict):
            row[key] = value
        elif "name" in value:
            row[key] = value["name"]
    row |= {f"workload.{key}": value for key, value in (run.get("workload") or {}).items()}
    row |= {key: run.get(key) for key in ("wall_s", "started_at")}
    return row | {key: (run.get("git") or {}).get(key) for key in ("commit", "dirty")}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value
