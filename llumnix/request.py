"""What is asked of the cluster: one workload, many requests. Nothing here knows how requests are served."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Priority(IntEnum):
    """Service class of a request (§4.4): both its place in the queue and its execution headroom follow from it."""

    NORMAL = 0
    HIGH = 1


@dataclass(frozen=True, slots=True)
class Workload:
    """A column per property, a row per request, in order of arrival.

    `label` is what figures print; `synthetic` says that lengths come from a fitted generator although the label names
    a real data set. `dropped` counts the rows of the source that were left out, by reason:
    rows_in == len(workload) + sum(dropped.values()).
    """

    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    priority: IntArray
    label: str
    synthetic: bool = False
    rows_in: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    sha256: str | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)
