"""How long the real global scheduler takes, fed with synthetic reports of many instances: no engine, no network.

It is the `Control` of the Ray cluster. Every instance reports `reports` times a second, gets `rate` requests a second
and drifts: requests come and go, free blocks fall and jump. Time is virtual, so that all that is measured is the
scheduler: processor time of each report, dispatch and migration round. P99 is over calls. "core" is the share of one
core that all of it takes at these rates; dispatches/s is what one core could do if it did nothing else.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from rich.table import Table

from analysis import words
from benchmarks import measure
from llumnix.cluster.real.control import Control
from llumnix.load import InstanceLoad
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.migration import MigrationPolicy, Pair
from llumnix.policies.spec import LoadReports, Scheduler
from llumnix.request import Priority

EXAMPLES = """examples:
  python -m benchmarks.scheduling                               64, 256, 1,024 and 4,096 instances
  python -m benchmarks.scheduling sizes=1024 dispatch=least_requests
  python -m benchmarks.scheduling rate=2 reports=10 seconds=30  more requests, fewer reports, a longer run
"""

BLOCKS = 783
BLOCK_TOKENS = 16
WATERMARK_BLOCKS = 7
MOVE_S = 0.3
"""How long a migration takes here."""


@dataclass(slots=True)
class Spent:
    """Nanoseconds of processor time of each call."""

    report: list[int] = field(default_factory=list)
    dispatch: list[int] = field(default_factory=list)
    round: list[int] = field(default_factory=list)
    pairs: int = 0


class Instance:
    """Loads that drift like those of an instance which serves requests of some 500 tokens."""

    def __init__(self, instance_id: int, rng: random.Random) -> None:
        self.instance_id = instance_id
        self._rng = rng
        self.running = rng.randrange(1, 24)
        self.waiting = 0
        self.free_blocks = rng.randrange(20, BLOCKS)

    def arrive(self) -> None:
        """A request is sent here; it is seen in the next report."""
        self.waiting += 1

    def leave(self, blocks: int) -> None:
        """A request is moved away."""
        self.running = max(0, self.running - 1)
        self.free_blocks = min(BLOCKS, self.free_blocks + blocks)

    def report(self) -> InstanceLoad:
        """Let some decode steps pass: requests in the queue are admitted, blocks fill, now and then one finishes."""
        while self.waiting and self.free_blocks > 40:
            self.waiting -= 1
            self.running += 1
            self.free_blocks -= 16
        self.free_blocks = max(0, self.free_blocks - self.running // BLOCK_TOKENS - self._rng.randrange(2))
        if self.running and (self._rng.random() < 0.025 or self.free_blocks == 0):
            self.leave(self._rng.randrange(16, 48))
        return InstanceLoad(
            self.instance_id,
            self.running,
            self.waiting,
            0,
            self.running // 20,
            self.free_blocks,
            BLOCKS,
            WATERMARK_BLOCKS,
            BLOCK_TOKENS,
            256 * self.waiting,
            256 if self.waiting else 0,
        )


def serve(instances: int, rule: str, rate: float, reports: float, seconds: float) -> Spent:
    """Feed a control for so many virtual seconds, after one that fills it; `rate` and `reports` are per instance."""
    rng = random.Random(instances)
    spec = Scheduler(
        dispatch=DispatchRule(rule),
        load_reports=LoadReports.immediate,
        migration=MigrationPolicy(enabled=True, out_threshold_blocks=3, in_threshold_blocks=3),
    )
    there = [Instance(instance_id, rng) for instance_id in range(instances)]
    now_s = 0.0
    moves: list[tuple[float, Pair, Callable[[bool], None]]] = []
    control = Control(
        spec,
        lambda pair, ended: moves.append((now_s + MOVE_S, pair, ended)),
        clock=lambda: now_s,
        uniform=rng.random,
    )
    for instance in there:
        control.report(instance.report())

    spent = Spent()
    gc.collect()
    gc.disable()
    for now_s, kind in _calendar(instances, rate, reports, seconds + 1, spec.migration.period_s, rng):
        while moves and moves[0][0] <= now_s:
            _, pair, ended = moves.pop(0)
            there[pair.source].leave(32)
            there[pair.destination].arrive()
            ended(True)
        load = there[rng.randrange(instances)].report() if kind == "report" else None
        priority = Priority.HIGH if rng.random() < 0.1 else Priority.NORMAL
        began_ns = time.thread_time_ns()
        if load is not None:
            control.report(load)
        elif kind == "dispatch":
            there[control.dispatch(priority)].arrive()
        else:
            control.round()
        took_ns = time.thread_time_ns() - began_ns
        if now_s > 1:
            getattr(spent, kind).append(took_ns)
    spent.pairs = control.pairs_started
    gc.enable()
    return spent


def _calendar(
    instances: int, rate: float, reports: float, seconds: float, period_s: float, rng: random.Random
) -> Iterator[tuple[float, str]]:
    """Yield time and kind of each call: reports and dispatches at random times, rounds at fixed ones."""
    each_s = instances * (rate + reports)
    now_s, round_s = 0.0, period_s
    while now_s < seconds:
        now_s += rng.expovariate(each_s)
        while round_s <= now_s:
            yield round_s, "round"
            round_s += period_s
        yield now_s, "dispatch" if rng.random() < rate / (rate + reports) else "report"


def main() -> None:
    """Measure every size in a process of its own and print one table."""
    known = ["sizes", "dispatch", "rate", "reports", "seconds"]
    asked = words.parse(None, "benchmarks.scheduling", known, __doc__ or "", EXAMPLES)
    sizes = [measure.whole_number("sizes", size) for size in asked.get("sizes", "64,256,1024,4096").split(",")]
    rule = asked.get("dispatch", DispatchRule.freest.value)
    if rule not in list(DispatchRule):
        words.stop(f"dispatch={rule} is not known; choose one of {', '.join(DispatchRule)}.")
    rate, reports, seconds = (
        measure.positive_number(key, asked.get(key, usual))
        for key, usual in (("rate", "0.5"), ("reports", "20"), ("seconds", "10"))
    )
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; dispatch={rule}")
    table = Table("instances")
    for heading in (
        "dispatches/s", "dispatch us", "P50", "P99", "report us", "P99", "round ms", "P99", "pairs/round", "core",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for instances in sizes:
        sys.stderr.write(f"{instances} instances ...\n")
        spent = measure.in_own_process(serve, instances, rule, rate, reports, seconds)
        dispatch, report, rounds = (np.array(x) / 1000 for x in (spent.dispatch, spent.report, spent.round))
        table.add_row(
            f"{instances:,}",
            f"{1e6 / dispatch.mean():,.0f}",
            f"{dispatch.mean():.1f}",
            *(f"{value:.1f}" for value in np.percentile(dispatch, (50, 99))),
            f"{report.mean():.1f}",
            f"{np.percentile(report, 99):.1f}",
            f"{rounds.mean() / 1000:.2f}",
            f"{np.percentile(rounds, 99) / 1000:.2f}",
            f"{spent.pairs / len(rounds):.1f}",
            f"{(dispatch.sum() + report.sum() + rounds.sum()) / seconds / 1e6:.1%}",
        )
    words.console().print(table)


if __name__ == "__main__":
    main()
