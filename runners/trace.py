"""`python -m runners.trace`: what a trace looks like, in numbers and as a picture. Serves nothing.

Takes the keys of runners.serve. Exit codes: 0 shown, 1 the trace cannot be read, 2 wrong usage or configuration.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llumnix.arrivals import Recorded
from llumnix.errors import ConfigError, TraceError
from llumnix.request import FloatArray, Workload
from llumnix.traces import FileTrace, Lengths
from llumnix.traces.credits import credit
from llumnix.traces.statistics import Burstiness, burstiness, length_statistics, rank_correlation
from llumnix.traces.table1 import TABLE_1
from llumnix.workload import build
from runners import config
from runners.command_line import is_multirun, one_sentence

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

CONF = Path(__file__).resolve().parent.parent / "conf"
OUTPUTS = Path("outputs") / "trace"
UNREADABLE, USAGE = 1, 2
WRONG_CONFIGURATION = (HydraException, OmegaConfBaseException, ConfigError)

config.register()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if is_multirun(words):
        return _say("runners.trace shows one trace at a time: leave out -m.", USAGE)
    sys.argv[1:] = words
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises its errors instead of printing them
    composed: list[DictConfig] = []
    try:
        # Hydra only composes: what fails inside its task would be announced in its own words as well.
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="serve")(composed.append)()
        for cfg in composed:  # none if Hydra was asked for help
            _show(cfg)
    except WRONG_CONFIGURATION as error:
        return _say(one_sentence(error), USAGE)
    except TraceError as error:
        return _say(one_sentence(error), UNREADABLE)
    except OSError as error:
        return _say(f"Cannot write: {one_sentence(error)}", UNREADABLE)
    return 0


def _show(cfg: DictConfig) -> None:
    settings = OmegaConf.to_object(cfg)
    assert isinstance(settings, config.ServeConfig)
    workload = build(
        settings.trace,
        settings.arrivals,
        qps=settings.qps,
        cv=settings.cv,
        seed=settings.seed,
        repeat=settings.repeat,
        num_requests=settings.num_requests,
        high_priority_fraction=settings.high_priority_fraction,
    )
    lengths = settings.trace.draw(settings.num_requests, settings.trace.streams(settings.seed))
    sent = settings.arrivals.name
    if settings.qps is not None and sent != "burst" and getattr(settings.arrivals, "rate_scale", None) is None:
        sent += f", qps={settings.qps:g}"
    times = {sent: workload.arrival_s}
    if lengths.stamp_s is not None and not isinstance(settings.arrivals, Recorded):
        times["as recorded"] = lengths.stamp_s

    console = _console()
    for part in _report(settings.trace.name, workload, lengths, times):
        console.print(part)
    path = settings.trace.path if isinstance(settings.trace, FileTrace) else None
    if path is not None:
        with Path(path).expanduser().open("rb") as file:
            console.print(f"sha256 of the file: {hashlib.file_digest(file, 'sha256').hexdigest()}")
    console.print(f"sha256 of the workload: {workload.sha256}")

    # Imported last: the numbers are on the screen before the drawing library is loaded.
    from runners.trace_figure import draw

    stem = settings.trace.name if path is None or settings.trace.name != "file" else Path(path).name.partition(".")[0]
    console.print(str(draw(workload, TABLE_1.get(settings.trace.name), sent, OUTPUTS / f"{stem}.png")))


def _report(name: str, workload: Workload, lengths: Lengths, times: dict[str, FloatArray]) -> Iterator[RenderableType]:
    """Everything that is said about a trace, top to bottom."""
    yield f"{workload.label}: {len(workload)} requests ({lengths.format})"
    if (whom := credit(lengths.format)) is not None:
        yield whom
    yield ""
    yield _length_table(name, workload)
    rho = rank_correlation(workload.prompt_tokens, workload.output_tokens)
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    yield (
        f"rank correlation of prompt and output: {_number(rho, '.2f')}; longest request: {longest:,} tokens in all; "
        f"high priority: {int((workload.priority > 0).sum())}"
    )
    yield ""
    yield _burstiness_table({label: burstiness(arrival_s) for label, arrival_s in times.items()})
    yield ""
    yield from _row_account(workload, lengths)


def _length_table(name: str, workload: Workload) -> RenderableType:
    table = _table("tokens", "mean", "P50", "P80", "P95", "P99", "max")
    paper = TABLE_1.get(name, (None, None))
    for side, tokens, published in zip(
        ("prompt", "output"), (workload.prompt_tokens, workload.output_tokens), paper, strict=True
    ):
        measured = length_statistics(tokens)
        values = (measured.mean, measured.p50, measured.p80, measured.p95, measured.p99, measured.max)
        table.add_row(side, *(f"{value:,.0f}" for value in values))
        if published is not None:
            table.add_row("  Table 1 of the paper", *(f"{value:,.0f}" for value in published), "", style="dim")
    return table


def _burstiness_table(rows: dict[str, Burstiness]) -> RenderableType:
    windows = [f"dispersion {window_s:g} s" for window_s in next(iter(rows.values())).dispersion]
    table = _table("arrivals", "span (s)", "rate (1/s)", "CV of gaps", "zero gaps", *windows)
    for label, row in rows.items():
        numbers = [_number(row.rate_per_s, ".3g"), _number(row.gap_cv, ".2f"), _number(row.zero_gap_fraction, ".1%")]
        spread = [_number(value, ".2f") for value in row.dispersion.values()]
        table.add_row(label, f"{row.span_s:,.1f}", *numbers, *spread)
    return table


def _row_account(workload: Workload, lengths: Lengths) -> Iterator[str]:
    reasons = ", ".join(f"{count:,} × {reason}" for reason, count in workload.dropped.items())
    yield f"rows read {workload.rows_in:,} = kept {len(workload):,} + dropped {sum(workload.dropped.values()):,}" + (
        f" ({reasons})" if reasons else ""
    )
    if lengths.inversions:
        yield f"{lengths.inversions:,} rows were stamped earlier than the row before them; rows are sorted by time"


def _table(first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _console() -> Console:
    """Standard output: coloured on a terminal, plain and unwrapped in a file or a pipe."""
    from rich.console import Console

    plain = not sys.stdout.isatty()
    return Console(highlight=False, markup=False, soft_wrap=plain, width=200 if plain else None)


def _say(problem: str, code: int) -> int:
    sys.stderr.write(f"{problem}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
