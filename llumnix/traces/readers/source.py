"""Open a trace file as text, gzip or not, and say in one sentence what is wrong with it. Knows no format."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO, cast

from llumnix.errors import TraceError

GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The file as text, whatever its name says about compression; every reading error becomes a TraceError."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            binary = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if packed else raw
            # The csv module wants line ends untouched; undecodable bytes end up as broken rows.
            with io.TextIOWrapper(binary, encoding="utf-8-sig", errors="replace", newline="") as text:
                yield text
    except FileNotFoundError:
        raise TraceError(f"There is no trace file {path}: check trace.path.") from None
    except IsADirectoryError:
        raise TraceError(f"{path} is a directory: give one trace file with trace.path=FILE.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise TraceError(f"{path} is a damaged or incomplete gzip file: fetch it again.") from None
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}.") from None
