"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def replacing(path: Path, content: bytes) -> None:
    """Write `content` to `path`, making its folder. Raises OSError if that cannot be done; the old file then stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
