"""Actors have to find the engines that tests give them, by the modules they are in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TRAPS = HERE.parents[1] / "integration" / "cluster"


@pytest.fixture(scope="session", autouse=True)
def _engines_of_tests_are_found_by_actors() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for directory in (HERE, TRAPS):
            patch.setenv("PYTHONPATH", str(directory), prepend=os.pathsep)
        yield
