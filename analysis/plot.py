"""`python -m analysis.plot fig=11`: from finished runs to a figure, its numbers, and the claims checked against them.

Writes figNN.png, .pdf, .csv, .claim and .claim.json to outputs/<experiment>/figures/, each whole or not at all; with
fig=all also one page of all figures, outputs/index.html.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, load, page, select, style, words
from analysis.claims.claim import claims_of
from analysis.claims.evaluate import evaluate
from analysis.claims.report import to_json, to_text
from analysis.files import replacing
from analysis.points import aggregate, missing, paper_points, to_csv

DESCRIPTION = "Draw a figure of finished runs, write its numbers, and check the paper's claims against them."
KEYS = ["fig", "outputs", "num_requests", "seed", "repeat", "engine"]
EXAMPLES = """examples:
  python -m analysis.plot fig=11                       the runs of outputs/fig11/runs -> outputs/fig11/figures/
  python -m analysis.plot fig=all                      every figure that has runs, and outputs/index.html with all
  python -m analysis.plot fig=11 num_requests=200      only runs of 200 requests
  python -m analysis.plot fig=11 outputs=/data/out     runs and figures elsewhere
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what is asked for; exit 2 with one sentence where nothing can be drawn."""
    asked = words.parse(argv, "analysis.plot", KEYS, DESCRIPTION, EXAMPLES)
    modules = {path.stem.removeprefix("fig"): path.stem for path in Path(figures.__path__[0]).glob("[!_]*.py")}
    known = sorted(modules)
    which = asked.pop("fig", "")
    which = which.zfill(2) if which.isdecimal() else which
    if which not in (*known, "all"):
        words.stop(f"fig={which or '?'} is not a figure; choose fig={', fig='.join(known)} or fig=all.")
    outputs = Path(asked.pop("outputs", str(load.OUTPUTS)))
    problems = [
        problem
        for number in (known if which == "all" else [which])
        if (problem := _draw(import_module(f"analysis.figures.{modules[number]}"), modules[number], outputs, asked))
    ]
    if which != "all" or len(problems) == len(known):
        if problems:
            words.stop(problems[0])
    else:
        for problem in problems:
            words.console().print(problem, markup=False)
        _write_page(outputs)


def _write_page(outputs: Path) -> None:
    """The page of all figures under `outputs`, those that were drawn before included."""
    index = outputs / "index.html"
    try:
        page.write(index, page.entries(sorted(outputs.glob("*/figures"))))
    except OSError as error:
        words.stop(f"Cannot write {index}: {error.strerror}; choose another place with outputs=DIR.")
    words.console().print(str(index), markup=False)


@dataclass(frozen=True, slots=True)
class _Material:
    """What a figure is made of."""

    samples: pd.DataFrame
    points: pd.DataFrame
    runs: int
    made_by: str
    notes: list[str]
    synthetic: set[str] = field(default_factory=set)


def _draw(module: ModuleType, name: str, outputs: Path, wanted: dict[str, str]) -> str:
    """Make all files of one figure and say what was made; the returned sentence says why not, or is empty.

    A module of analysis.figures has EXPERIMENT (the directory of its runs), samples(runs) and draw(points, paper,
    synthetic), and VARIED if its runs differ in more than analysis.select expects; what it draws and what the claims
    judge are the same samples. One with report(points, notes) compares series with each other, and writes that where
    others judge sentences of the paper. One with read(outputs) takes its samples from other files than those of runs,
    which the command HOW makes.
    """
    console = words.console()
    paper = paper_points(name)
    found = _of_files(module, outputs) if hasattr(module, "read") else _of_runs(module, paper, outputs, wanted)
    if isinstance(found, str):
        return found
    results = [evaluate(claim, found.samples, paper) for claim in claims_of(name)]
    with mpl.rc_context(style.SETTINGS):
        figure = module.draw(found.points, paper, found.synthetic)
        files = {".png": _render(figure, "png"), ".pdf": _render(figure, "pdf")}
    about = {
        "title": (module.__doc__ or name).splitlines()[0].rstrip("."),
        "made_by": [found.made_by, f"python -m analysis.plot fig={name.removeprefix('fig')}"],
        "runs": found.runs,
        "notes": found.notes,
    }
    compares = hasattr(module, "report")
    title = f"Claims about {name}, judged on {found.runs} runs"
    report = module.report(found.points, found.notes) if compares else to_text(title, found.notes, results)
    files |= {
        ".csv": to_csv(found.points).encode(),
        ".claim": report.encode(),
        ".claim.json": to_json(name, about, results).encode(),
    }
    folder = outputs / module.EXPERIMENT / "figures"
    for suffix, content in files.items():
        _write(folder / f"{name}{suffix}", content)
    for line in report.splitlines() if compares else found.notes:
        console.print(line, markup=False)
    console.print(f"{folder / name}{{{','.join(files)}}}", markup=False)
    return ""


def _of_runs(module: ModuleType, paper: pd.DataFrame, outputs: Path, wanted: dict[str, str]) -> _Material | str:
    found = load.runs(outputs, module.EXPERIMENT)
    runs = load.matching(found[found["state"] == load.State.DONE], wanted)
    if runs.empty:
        filters = "".join(f" {key}={value}" for key, value in wanted.items())
        return (
            f"No finished runs of {module.EXPERIMENT}{filters} in {outputs / module.EXPERIMENT / 'runs'}; "
            f"make them with: python -m runners.serve experiment={module.EXPERIMENT}{filters}"
        )
    runs, notes = select.of_one_setting(runs, getattr(module, "VARIED", ()))
    samples = module.samples(runs)
    if samples.empty:
        return f"None of the {len(runs)} runs of {module.EXPERIMENT} belongs into this figure ({module.__name__})."
    points = aggregate(samples)
    notes += _not_drawn(found, points, paper, module.EXPERIMENT)
    synthetic = {*runs.loc[runs["workload.synthetic"].astype(bool), "config.trace.label"]}
    if synthetic:
        notes.append(f"Synthetic lengths, shaped after Table 1 and not the data set's: {', '.join(sorted(synthetic))}.")
    return _Material(samples, points, len(runs), _serve_command(module.EXPERIMENT, runs, wanted), notes, synthetic)


def _of_files(module: ModuleType, outputs: Path) -> _Material | str:
    samples = module.read(outputs)
    if samples.empty:
        return f"Nothing for fig={module.EXPERIMENT} in {outputs / module.EXPERIMENT}; make it with: {module.HOW}"
    return _Material(samples, aggregate(samples), samples["row"].nunique(), module.HOW, [])


def _not_drawn(found: pd.DataFrame, points: pd.DataFrame, paper: pd.DataFrame, experiment: str) -> list[str]:
    absent: dict[str, list[str]] = {}
    for (row, series), xs in missing(points, paper).items():
        ran = ((points["row"] == row) & (points["series"] == series)).any()
        absent.setdefault(row, []).append(f"{series} at {', '.join(f'{x:g}' for x in xs)}" if ran else series)
    notes = [f"Missing on {row}: {'; '.join(series)}." for row, series in absent.items()]
    for state in (load.State.FAILED, load.State.UNFINISHED):
        if count := int((found["state"] == state).sum()):
            notes.append(f"{count} runs {state}: python -m analysis.runs experiment={experiment} state={state}")
    return notes


def _render(figure: Figure, kind: str) -> bytes:
    """The file's bytes, without dates or versions, so that the same points give the same file."""
    empty = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None, "Creator": None}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=style.DPI, metadata=empty[kind])
    return buffer.getvalue()


def _serve_command(experiment: str, runs: pd.DataFrame, wanted: dict[str, str]) -> str:
    """The command that makes these runs: seeds and repeats are those that are there."""
    command = f"python -m runners.serve experiment={experiment}"
    for key in ("seed", "repeat"):
        values = sorted(runs[key].unique())
        if values != [0]:
            command += f" {key}={','.join(map(str, values))}"
    return command + "".join(f" {key}={value}" for key, value in wanted.items() if key not in ("seed", "repeat"))


def _write(path: Path, content: bytes) -> None:
    try:
        replacing(path, content)
    except OSError as error:
        words.stop(f"Cannot write to {path.parent}: {error.strerror}; choose another place with outputs=DIR.")


if __name__ == "__main__":
    with words.interruptible():
        main()
