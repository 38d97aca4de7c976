"""Each tensor-parallel rank moves its own shard of the KV. In a process of its own, because engines are shut down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_every_rank_moves_its_shard(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-3000:]
    fine = {"moved": [True, True], "most_tokens_in_a_step": 1, "same": True}
    assert json.loads(lines[0]) == {"inline": fine, "shared_memory": fine}
