"""The log of a sweep: the launching process writes the plan, every job adds a line, wherever it runs.

Jobs are told the log's path through an environment variable that Hydra sets around each job, so that any launcher
whose workers see the same file system will do. The launching process follows the log and prints.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llumnix.errors import ConfigError
from runners.outcome import Outcome, State

ENV = "LLUMNIX_SWEEP_LOG"


class SweepLog:
    """Append-only lines of JSON in <experiment directory>/sweeps/; the first one is the plan."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_this_job(cls) -> SweepLog | None:
        """The log of the sweep that this job belongs to, None for a single run."""
        return cls(Path(os.environ[ENV])) if ENV in os.environ else None

    @classmethod
    def begin(
        cls, directory: Path, jobs: Sequence[Sequence[str]], excluded: int, git: Mapping[str, Any] | None
    ) -> SweepLog:
        """Write the plan for `jobs`, each a list of key=value overrides; OSError if the directory cannot be written."""
        directory.mkdir(parents=True, exist_ok=True)
        log = cls(directory.resolve() / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.jsonl")
        log.append({"jobs": len(jobs), "excluded": excluded, "varying": _varying(jobs), "git": git})
        return log

    @property
    def experiment_directory(self) -> Path:
        """outputs/<name> of the launching process, whatever directory the worker is in."""
        return self.path.parent.parent

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line in one write, so that lines of several processes do not mix."""
        data = (json.dumps(line, separators=(",", ":")) + "\n").encode()
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, data)
        finally:
            os.close(handle)

    def lines(self, start: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The whole lines from byte `start` on, and the byte after the last of them."""
        with self.path.open("rb") as file:
            file.seek(start)
            whole, newline, _ = file.read().rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines()], start + len(whole) + len(newline)

    def plan(self) -> dict[str, Any]:
        """What begin() wrote."""
        with self.path.open("rb") as file:
            plan: dict[str, Any] = json.loads(file.readline())
        return plan

    def outcomes(self) -> list[Outcome]:
        """The jobs that have ended, in that order."""
        return [Outcome.from_json(line) for line in self.lines()[0][1:]]

    def any_failed(self) -> bool:
        """True if a job of this sweep has failed; what fail_fast looks at."""
        return any(outcome.state in (State.FAILED, State.INVALID) for outcome in self.outcomes())


class Follower(threading.Thread):
    """Calls `show(log, number, outcome)` for each job as it ends, once the sweeper has begun a log."""

    PERIOD_S = 0.1

    def __init__(self, show: Callable[[SweepLog, int, Outcome], None]) -> None:
        super().__init__(daemon=True)
        self._show = show
        self._stop_asked = threading.Event()
        self._read_to = 0
        self._lines = 0

    def run(self) -> None:
        """Poll until stopped, and once more after that."""
        while not self._stop_asked.wait(self.PERIOD_S):
            self._catch_up()
        self._catch_up()

    def stop(self) -> None:
        """Show what is still unread and end the thread."""
        self._stop_asked.set()
        self.join()

    def _catch_up(self) -> None:
        log = SweepLog.of_this_job()
        if log is None:
            return
        found, self._read_to = log.lines(self._read_to)
        for line in found:
            if self._lines:
                self._show(log, self._lines, Outcome.from_json(line))
            self._lines += 1


def is_excluded(settings: Mapping[str, str], exclude: Iterable[Mapping[str, str]]) -> bool:
    """True if all entries of one of the `exclude` items fit the options and values of a job.

    An entry fits if the setting is one of its comma-separated values; numbers compare as numbers, and `<2` and `>8` are
    all numbers below and above.
    """
    return any(item and all(_fits(settings.get(key), values) for key, values in item.items()) for item in exclude)


def chosen(job: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """The options of each group after the overrides of `job`, and its other overrides."""
    given = dict(override.lstrip("+").split("=", 1) for override in job if "=" in override)
    return {**defaults, **given}


def _fits(setting: str | None, values: str) -> bool:
    return setting is not None and any(_is(_comparable(setting), value.strip()) for value in values.split(","))


def _is(setting: float | str, value: str) -> bool:
    if value[:1] not in ("<", ">"):
        return setting == _comparable(value)
    bound = _comparable(value[1:])
    if isinstance(bound, str):
        raise ConfigError(f"exclude: {value} is no bound; type a number behind < or >, such as <2.")
    return isinstance(setting, float) and (setting < bound if value[0] == "<" else setting > bound)


def _comparable(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value.strip()


def covering(jobs: Sequence[Sequence[str]], keys: Collection[str]) -> list[Sequence[str]]:
    """Few jobs in which every override of one of `keys` that occurs in `jobs` occurs at least once."""
    unseen = {override for job in jobs for override in job if override.partition("=")[0] in keys}
    kept = []
    while unseen:
        kept.append(max(jobs, key=lambda job: len(unseen.intersection(job))))
        unseen.difference_update(kept[-1])
    return kept


def _varying(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The keys that differ between jobs, or may once interpolations are resolved; all keys if none does."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for override in job:
            key, _, value = override.partition("=")
            values.setdefault(key.lstrip("+"), set()).add(value)
    return [key for key, found in values.items() if len(found) > 1 or "$" in min(found)] or list(values)
