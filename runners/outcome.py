"""How one job ended, in words that fit on a line. Printing is runners.report's business."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """What became of a job; the values are what people read."""

    DONE = "done"
    SKIPPED = "done already"
    FAILED = "failed"
    INVALID = "wrong input"
    EXCLUDED = "not in the figure"
    STOPPED = "not started"
    PLANNED = "would run"
    RETRY = "would run again, failed before"


@dataclass(kw_only=True, slots=True)
class Outcome:
    """`settings` are the job's overrides with interpolations resolved; `message` is one sentence, or empty.

    `other_code` says that the results at hand were made by another commit than the present one.
    """

    state: State
    settings: dict[str, str] = field(default_factory=dict)
    directory: str = ""
    wall_s: float = 0.0
    message: str = ""
    other_code: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Outcome:
        """The reverse of to_json."""
        return cls(**(line | {"state": State(line["state"])}))
