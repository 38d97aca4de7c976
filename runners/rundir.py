"""The directory of one run: its state, its lock, and results that appear whole or not at all.

<root>/runs/<id>/        run.json, *.parquet, then summary.json; or run.json, failure.json
<root>/runs/.<id>.part/  files being written; whoever holds the lock next removes what a killed process left
<root>/.locks/<id>       held while a process is at the run
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

SUMMARY, FAILURE, RUN = "summary.json", "failure.json", "run.json"


class OnDisk(StrEnum):
    """What the files say."""

    NOTHING = "nothing"
    DONE = "done"
    FAILED = "failed"


class RunDirectory:
    """Run `run_id` of the experiment directory `root`; nothing is created before it is needed."""

    def __init__(self, root: Path, run_id: str) -> None:
        self.path = root / "runs" / run_id
        self._part = root / "runs" / f".{run_id}.part"
        self._lock = root / ".locks" / run_id

    def state(self) -> OnDisk:
        """Done as soon as there is a summary, which is always written last."""
        if (self.path / SUMMARY).exists():
            return OnDisk.DONE
        return OnDisk.FAILED if (self.path / FAILURE).exists() else OnDisk.NOTHING

    def run_json(self) -> dict[str, Any]:
        """What was recorded about the run; empty if that cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.path / RUN).read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        return {}

    @contextlib.contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the run for this process; if another one has it, call `on_wait` once and wait until it lets go."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire(poll_interval=0.2)
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def publishing(self) -> Iterator[Path]:
        """Give an empty directory; what is in it when the block ends well becomes the run's results, summary last.

        If the block raises, or the process is interrupted, the run stays as it was. Needs the lock.
        """
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir(parents=True)
        try:
            yield self._part
            self.path.mkdir(exist_ok=True)
            (self.path / SUMMARY).unlink(missing_ok=True)
            for file in sorted(self._part.iterdir(), key=lambda file: file.name == SUMMARY):
                file.replace(self.path / file.name)
            (self.path / FAILURE).unlink(missing_ok=True)
        finally:
            shutil.rmtree(self._part, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Remove half-written files of processes that were killed; those of living processes stay."""
    for part in (root / "runs").glob(".*.part"):
        lock = FileLock(root / ".locks" / part.name.removeprefix(".").removesuffix(".part"))
        with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):
            shutil.rmtree(part, ignore_errors=True)
