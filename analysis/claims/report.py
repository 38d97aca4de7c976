"""figNN.claim, a table for people, and figNN.claim.json, the same for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from analysis.claims.claim import Claim, Kind, Verdict
from analysis.claims.evaluate import Result

HEAD = ("claim", "paper", "its points", "measured [95 % interval]", "n", "point", "typical (its points)", "verdict")


def to_text(title: str, notes: Sequence[str], results: Sequence[Result]) -> str:
    """A pipe table that reads as plain text and as Markdown, after a title and notes, before counts and footnotes."""
    counts = [f"{sum(r.verdict is v for r in results)} {v}" for v in Verdict]
    lines = [title, "", *notes, *([""] if notes else []), *_table(HEAD, [_cells(result) for result in results]), ""]
    lines += [", ".join(counts) + ".", ""]
    lines += [
        "paper: its text; its points: the same sentence computed from the points of its figure; n: runs per point;",
        "typical: median over points (ratios, differences) or reduction of the sum; verdicts: docs/metrics.md.",
    ]
    other = [f"{r.claim.id}: {_readings(r)}." for r in results if r.claim.readings]
    return "\n".join([*lines, *(["", "Other published readings:", *other] if other else []), ""])


def to_json(figure: str, about: Mapping[str, object], results: Sequence[Result]) -> str:
    """What is to be said `about` the figure, and all fields of all results; numbers that do not exist are null."""
    content = {"figure": figure, **about, "claims": [_record(result) for result in results]}
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def row_of_record(record: Mapping[str, Any]) -> dict[str, str]:
    """The row of the table that one record of figNN.claim.json stands for, by heading."""
    known = {f.name for f in fields(Claim)}
    claim: dict[str, Any] = {
        key: tuple(value) if key == "rows" else value for key, value in record.items() if key in known
    }
    found: dict[str, Any] = {
        key: math.nan if value is None else value for key, value in record.items() if key not in known
    }
    claim["kind"], found["verdict"] = Kind(claim["kind"]), Verdict(found["verdict"])
    return dict(zip(HEAD, _cells(Result(claim=Claim(**claim), **found)), strict=True))


def _cells(result: Result) -> tuple[str, ...]:
    show = result.claim.show
    measured = show(result.value)
    if not math.isnan(result.low):
        measured += f" [{show(result.low)}, {show(result.high)}]"
    partial = 0 < result.points < result.points_expected
    return (
        result.claim.text,
        show(result.claim.expected),
        f"{show(result.paper)}{f' ({result.paper_point})' if '@' in result.paper_point else ''}",
        measured,
        str(result.n) if result.n else "-",
        (result.point or "-") + (f" ({result.points} of {result.points_expected} points)" if partial else ""),
        f"{show(result.typical)} ({show(result.paper_typical)})",
        str(result.verdict),
    )


def _readings(result: Result) -> str:
    return ", ".join(f"{source} {result.claim.show(value)}" for source, value in result.claim.readings.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return [lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]]


def _record(result: Result) -> dict[str, object]:
    claim = {f.name: getattr(result.claim, f.name) for f in fields(result.claim)}
    found = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "claim"}
    return claim | {name: None if _is_nan(value) else value for name, value in found.items()}


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
