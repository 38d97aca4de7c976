"""The copy kernel on Triton's interpreter, which needs no GPU: rows arrive where they belong and nowhere else."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import torch
from llumnix.engines.vllm.peer_memory import Rows, copy_rows as copy


def copy_rows(sources, source_rows, targets, rows):
    copy(Rows(sources, sources[0].device), source_rows, Rows(targets, targets[0].device), rows)


torch.manual_seed(0)
for shape in ((9, 2, 16, 8), (9, 3, 37 * 8), (9, 2, 33 * 1024)):
    sources = [torch.randn(shape).half() for _ in range(3)]
    targets = [torch.randn(shape).half() for _ in range(3)]
    before = [target.clone() for target in targets]
    copy_rows(sources, [7, 0, 3], targets, [1, 8, 4])
    for source, target, old in zip(sources, targets, before):
        assert torch.equal(target[[1, 8, 4]], source[[7, 0, 3]])
        assert torch.equal(target[[0, 2, 3, 5, 6, 7]], old[[0, 2, 3, 5, 6, 7]])
permuted = [torch.randn(9, 16, 2, 8).permute(0, 2, 1, 3) for _ in range(2)]  # rows are whole, in another order
copy_rows(permuted[:1], [5], permuted[1:], [6])
assert torch.equal(permuted[1][6], permuted[0][5])
gaps = [torch.randn(9, 4, 32)[:, :2] for _ in range(2)]  # rows that are not one piece of memory
other = gaps[1][7].clone()
copy_rows(gaps[:1], [5], gaps[1:], [6])
assert torch.equal(gaps[1][6], gaps[0][5]) and torch.equal(gaps[1][7], other)
print("copied")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and os.environ.get("CI") != "true",
    reason="Triton is not installed; `make test` installs it together with vLLM",
)
def test_rows_arrive_where_they_belong() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout == "copied\n", done.stderr
