"""`python -m analysis.reference`: keep the results of figures for the repository, small, with one page of all.

Takes CSV, claims and picture of every figure from outputs/<experiment>/figures to outputs/reference/<figure>, with the
picture reduced, and writes outputs/reference/index.html over all that is there.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from analysis import load, page, words
from analysis.files import replacing

DESCRIPTION = "Copy figures, numbers and claims to outputs/reference, pictures made small, and write its page."
KEYS = ["fig", "outputs"]
EXAMPLES = """examples:
  python -m analysis.reference               every figure that has been drawn -> outputs/reference/
  python -m analysis.reference fig=3,12      two of them; the page shows all that are kept
"""
SUFFIXES = (".csv", ".claim", ".claim.json")
WIDTH, COLOURS = 1800, 256


def main(argv: Sequence[str] | None = None) -> None:
    """Copy and write the page; exit 2 with one sentence where there is nothing to copy."""
    asked = words.parse(argv, "analysis.reference", KEYS, DESCRIPTION, EXAMPLES)
    outputs = Path(asked.get("outputs", str(load.OUTPUTS)))
    drawn = {path.name.removesuffix(".claim.json"): path.parent for path in outputs.glob("*/figures/*.claim.json")}
    wanted = [f"fig{word.zfill(2)}" if word.isdecimal() else word for word in asked.get("fig", "").split(",") if word]
    if unknown := [name for name in wanted or ["any figure"] if wanted or not drawn if name not in drawn]:
        words.stop(f"{', '.join(unknown)}: not drawn yet in {outputs}; type first: python -m analysis.plot fig=all")
    reference = outputs / "reference"
    try:
        for name in sorted(wanted or drawn):
            for suffix in SUFFIXES:
                replacing(reference / name / f"{name}{suffix}", (drawn[name] / f"{name}{suffix}").read_bytes())
            replacing(reference / name / f"{name}.png", _small(drawn[name] / f"{name}.png"))
        page.write(reference / "index.html", page.entries(sorted(reference.glob("*/"))))
    except OSError as error:
        words.stop(f"Cannot write to {reference}: {error.strerror}; choose another place with outputs=DIR.")
    words.console().print(str(reference / "index.html"), markup=False)


def _small(picture: Path) -> bytes:
    """The picture at most WIDTH pixels wide, with a palette."""
    with Image.open(picture) as image:
        height = round(image.height * WIDTH / image.width)
        reduced = image.convert("RGB")
        if image.width > WIDTH:
            reduced = reduced.resize((WIDTH, height), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        reduced.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    with words.interruptible():
        main()
