"""What runners.profile prints: how good a fit is, and how near a replay comes to what was recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from rich.table import Table

from llumnix.engines.sim.fit import RegionError
from llumnix.ground_truth import METRICS, STATISTICS, compare
from llumnix.record import Columns


def error_table(errors: Iterable[RegionError]) -> Table:
    """A row per region of the profile."""
    table = _table("error of the fit", "steps", "mean", "median", "P90", "worst", "median, left out")
    for e in errors:
        shares = (f"{e.mean:+.1%}", f"{e.median:.1%}", f"{e.p90:.1%}", f"{e.worst:.1%}", f"{e.held_out:.1%}")
        table.add_row(f"{e.region} steps", f"{e.steps:,}", *shares)
    return table


def replay_table(columns: Columns) -> Iterator[Table | str]:
    """A row per metric, and the number of preemptions."""
    table = _table("simulated, and its error", *STATISTICS)
    found = list(compare(columns))
    for metric, label in METRICS.items():
        row = [f"{c.simulated_s:.4g} s {c.error:+.1%}" for c in found if c.metric == metric]
        table.add_row(label, *(row or ["-"] * len(STATISTICS)))
    yield table
    preemptions = int(np.sum(columns["simulated_preemptions"]))
    yield f"{len(columns['request_id']):,} requests replayed, {preemptions:,} preemptions simulated"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table
