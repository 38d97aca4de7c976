"""A trap for processes: who first comes to a named step stops there until the test has let it go, or killed it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from local import wait_until

HELD_S = 30.0
"""A process that nobody lets go goes on after this time."""


@dataclass(frozen=True)
class Trap:
    """Files in a directory that all processes see: `set` names the step, `held` the instance that has come to it."""

    directory: Path

    def set(self, step: str) -> None:
        """Wait for whoever comes to this step."""
        self._set.write_text(step)

    def caught(self, limit_s: float) -> int:
        """Return the instance that has come to it."""
        wait_until(self._held.exists, limit_s)
        return int(json.loads(self._held.read_text()))

    def open(self) -> None:
        """Let it go, and catch nobody else."""
        self._set.unlink(missing_ok=True)
        self._held.unlink(missing_ok=True)

    def watch(self, instance_id: int) -> Callable[[str], None]:
        """Return what the engine of an instance has to call with every step."""

        def at(step: str) -> None:
            mine = self.directory / f"instance-{instance_id}"
            try:
                if self._set.read_text() != step:
                    return
                self._set.rename(mine)
            except FileNotFoundError:
                return  # nothing is set, or another one was first
            mine.write_text(json.dumps(instance_id))
            mine.rename(self._held)
            end_s = time.monotonic() + HELD_S
            while self._held.exists() and time.monotonic() < end_s:
                time.sleep(0.002)

        return at

    @property
    def _set(self) -> Path:
        return self.directory / "set"

    @property
    def _held(self) -> Path:
        return self.directory / "held"
