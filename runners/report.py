"""What a person sees of jobs: a line as each ends, a table when all have. Reads summary.json, computes nothing."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.outcome import Outcome, State

if TYPE_CHECKING:
    from rich.console import Console

    from runners.capacity import Answer, Find
    from runners.objective import Objective

SMALL_SWEEP = 12
WITH_RESULTS = (State.DONE, State.SKIPPED)
FAILURES = (State.FAILED, State.INVALID)
HEADLINES = {
    "request_latency": ("request latency", "s", 1.0),
    "prefill_latency": ("prefill latency", "s", 1.0),
    "decode_latency": ("decode latency", "ms", 1000.0),
    "preemption_loss": ("preemption loss", "s", 1.0),
}
"""Beginning of the keys in summary.json -> name, unit and factor for people."""


def line(outcome: Outcome, keys: Sequence[str], counter: str = "") -> str:
    """`[17/80] trace=m_m scheduler=llumnix qps=7.6  done  0.41 s`, with the settings named in `keys`."""
    settings = [f"{key}={outcome.settings[key]}" for key in keys if key in outcome.settings]
    words = [" ".join([counter] * bool(counter) + settings), str(outcome.state)]
    if outcome.state is State.DONE:
        words.append(f"{outcome.wall_s:.2f} s")
    if outcome.message:
        words.append(outcome.message)
    return "  ".join(filter(None, words))


def sweep_table(outcomes: Sequence[Outcome], plan: Mapping[str, Any], wall_s: float) -> None:
    """Counts by state; for a sweep of few jobs also a row per job with its headline numbers."""
    from rich.table import Table

    console = _console()
    if len(outcomes) <= SMALL_SWEEP:
        _headlines(console, [o for o in outcomes if o.state in WITH_RESULTS], plan["varying"])
    counts = Counter(outcome.state for outcome in outcomes)
    counts[State.EXCLUDED] += plan["excluded"]
    counts[State.STOPPED] += plan["jobs"] - len(outcomes)
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [state for state in State if counts[state]]
    for state in shown:
        table.add_column(str(state), justify="right")
    table.add_column("wall time", justify="right")
    table.add_row(*(str(counts[state]) for state in shown), f"{wall_s:.1f} s")
    console.print(table)


def _headlines(console: Console, outcomes: Sequence[Outcome], keys: Sequence[str]) -> None:
    from rich.table import Table

    if not outcomes:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in keys:
        table.add_column(key)
    for name, unit, _ in HEADLINES.values():
        table.add_column(f"{name}\nmean ({unit})", justify="right")
        table.add_column("\nP99", justify="right")
    for outcome in sorted(outcomes, key=lambda o: [natural(o.settings.get(key, "")) for key in keys]):
        summary = _summary(outcome)
        numbers = [
            _cell(summary, f"{metric}_{which}_s", factor)
            for metric, (_, _, factor) in HEADLINES.items()
            for which in ("mean", "p99")
        ]
        table.add_row(*(outcome.settings.get(key, "") for key in keys), *numbers)
    console.print(table)


def natural(text: str) -> tuple[int, float, str]:
    """Sort key: numbers by value before words."""
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


def run_table(outcome: Outcome) -> None:
    """Metrics of one run: mean, P50 and P99."""
    from rich.table import Table

    summary = _summary(outcome)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    for heading in ("mean", "P50", "P99"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    for key, (name, unit, factor) in HEADLINES.items():
        table.add_row(name, *(_cell(summary, f"{key}_{which}_s", factor) for which in ("mean", "p50", "p99")), unit)
    console = _console()
    console.print(table)
    counts = [f"{summary[key]} {name}" for key, name in COUNTS.items() if summary.get(key)]
    if "slo_attainment" in summary:
        goodput = f", goodput {summary['goodput_per_s']:.4g} requests/s" if "goodput_per_s" in summary else ""
        counts.append(f"{summary['slo_attainment']:.1%} within the SLO{goodput}")
    console.print(", ".join(counts))


COUNTS = {
    "finished": "requests finished",
    "rejected": "rejected",
    "failed": "failed",
    "preemptions": "preemptions",
    "migrations": "migrations",
    "migrated_requests": "requests migrated",
}


def capacity_table(answers: Sequence[Answer], objective: Objective, find: Find) -> None:
    """What was found, a row per job; the last column compares it with the first row."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in answers[0].settings:
        table.add_column(key)
    table.add_column("highest rate (1/s)" if find == "rate" else "fewest instances", justify="right")
    table.add_column("measured there (limit)")
    table.add_column("probes", justify="right")
    table.add_column("run now", justify="right")
    if len(answers) > 1:
        table.add_column("to the first", justify="right")
    first = answers[0].number
    for answer in answers:
        number = answer.number
        shown = "none" if number is None else f"{'over ' if answer.unbounded else ''}{number:.6g}"
        there = objective.show(answer.probes[number]) if number in answer.probes else "-"
        ratio = f"{number / first:.2f}x" if number is not None and first else "-"
        cells = [*answer.settings.values(), shown, there, str(len(answer.probes)), str(answer.runs)]
        table.add_row(*cells, *([ratio] if len(answers) > 1 else []))
    _console().print(table)


def _summary(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(outcome.directory) / "summary.json").read_text(encoding="utf-8"))
    return found


def _cell(summary: Mapping[str, Any], key: str, factor: float) -> str:
    return f"{summary[key] * factor:.4g}" if key in summary else "-"


def _console() -> Console:
    """Standard output: coloured on a terminal, plain and unwrapped in a file or a pipe."""
    from rich.console import Console

    plain = not sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=plain, width=200 if plain else None)
