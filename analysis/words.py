"""The command line of this package: `key=value` words, as everywhere in this project, plus --help."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console

USAGE, INTERRUPTED = 2, 130


def parse(
    argv: Sequence[str] | None, program: str, known: Collection[str], description: str, examples: str
) -> dict[str, str]:
    """The words of a command line by key. A word that is no known key=value ends the program with one line, exit 2."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help=f"keys: {', '.join(known)}")
    words: dict[str, str] = {}
    for word in parser.parse_args(argv).words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            stop(f"'{word}' is not key=value; keys: {', '.join(known)}.")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            stop(f"Unknown key '{key}'{f'; did you mean {close[0]}=?' if close else ''} Keys: {', '.join(known)}.")
        words[key] = value
    return words


def stop(message: str) -> NoReturn:
    """End the program: one sentence to standard error, exit code 2."""
    sys.stderr.write(message + "\n")
    raise SystemExit(USAGE)


@contextmanager
def interruptible() -> Iterator[None]:
    """End the program on Ctrl-C with one word to standard error, exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        raise SystemExit(INTERRUPTED) from None


def console() -> Console:
    """Standard output: coloured and fitted to a terminal, plain and unwrapped in a file or a pipe."""
    plain = not sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=plain, width=400 if plain else None)
