"""Steps of a profile that is being measured: a line for each kind of step, written as soon as it is known.

The file is there while an engine is measured, and stays where that did not come to its end, for whatever reason.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llumnix import profile
from llumnix.number_table import read_table

if TYPE_CHECKING:
    import pyarrow as pa

    from llumnix.engines.vllm.meter import Step

UNFINISHED = "unfinished_steps.csv"


def add(path: Path, steps: Sequence[Step]) -> None:
    """Write these steps behind those that are there."""
    heading = [] if path.exists() else [profile.PROFILE.names]
    lines = [*heading, *((*step.content, step.step_s) for step in steps)]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(",".join(map(str, line)) + "\n" for line in lines))


def read(path: Path) -> pa.Table:
    """Return the steps that were written whole, with the columns of PROFILE; ConfigError if there are none."""
    content = path.read_bytes()
    return read_table(path, io.BytesIO(content[: content.rfind(b"\n") + 1]))
