"""One page of all figures: each with its claims, their verdicts, and the commands that made it. Reads files only.

The page is a single file that needs nothing else and no network: pictures are inside it.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from analysis.claims.claim import Verdict
from analysis.claims.report import row_of_record
from analysis.files import replacing


@dataclass(frozen=True, slots=True)
class Entry:
    """One figure as its files tell it; `png` is the picture in base64, `claims` the rows of its table."""

    name: str
    title: str
    made_by: list[str]
    notes: list[str]
    runs: int
    png: str
    claims: list[dict[str, str]]
    verdicts: dict[str, int]


def entries(folders: list[Path]) -> list[Entry]:
    """The figures in these folders, by name; each has <name>.png and <name>.claim.json in one of them."""
    found = [path for folder in folders for path in folder.glob("*.claim.json")]
    return [_entry(path) for path in sorted(found, key=lambda path: path.name) if _picture(path).exists()]


def write(path: Path, found: list[Entry]) -> None:
    """Write the page, whole or not at all. Raises OSError if it cannot be written."""
    environment = Environment(
        loader=PackageLoader("analysis", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    total: Counter[str] = Counter()
    for entry in found:
        total.update(entry.verdicts)
    text = environment.get_template("page.html.j2").render(
        entries=found, verdicts={str(v): total[str(v)] for v in Verdict}
    )
    replacing(path, (text + "\n").encode())


def _entry(path: Path) -> Entry:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    claims = [row_of_record(record) for record in content["claims"]]
    counts = Counter(claim["verdict"] for claim in claims)
    return Entry(
        name=content["figure"],
        title=content["title"],
        made_by=content["made_by"],
        notes=content["notes"],
        runs=content["runs"],
        png=base64.b64encode(_picture(path).read_bytes()).decode(),
        claims=claims,
        verdicts={str(v): counts[str(v)] for v in Verdict if counts[str(v)]},
    )


def _picture(claims: Path) -> Path:
    return claims.with_name(claims.name.removesuffix(".claim.json") + ".png")
