"""Where a result comes from: commit, versions, machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def git() -> dict[str, Any] | None:
    """Commit of the source tree and whether tracked files differ from it; None outside a repository of its own."""
    try:
        top, commit = _git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top) != ROOT:
            return None
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes and stores the numbers."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "pyarrow"):
        if name in sys.modules:
            found[name] = sys.modules[name].__version__
    try:
        found["llumnix-lab"] = importlib.metadata.version("llumnix-lab")
    except importlib.metadata.PackageNotFoundError:
        found["llumnix-lab"] = "not installed"
    return found


def host() -> dict[str, Any]:
    """The machine that ran."""
    return {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
