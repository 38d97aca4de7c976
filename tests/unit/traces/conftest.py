"""Where the real traces are, for the tests that need them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

BESIDE_REPOSITORY = Path(__file__).parents[4] / "shared" / "traces"


@pytest.fixture(scope="session")
def real_traces() -> Path:
    directory = Path(os.environ.get("LLUMNIX_TRACES", BESIDE_REPOSITORY))
    if not directory.is_dir():
        pytest.skip("no real traces: set LLUMNIX_TRACES to a directory that holds them")
    return directory
