"""The global scheduler: reports in, decisions out. Sans-IO, and owner of no request state.

It does not know whether its instances are simulated or real. A `ReportSource` answers with the latest report of an
instance; `touch` says that a newer one may be better than what was last seen. Between two touches the freeness of an
instance can only fall (running requests fill blocks), which lets the scheduler look at few instances instead of all.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Protocol

from llumnix.load import FreenessRule, InstanceLoad, dispatch_freeness, migration_freeness
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.migration import Pair, is_source, pair
from llumnix.policies.spec import Scheduler
from llumnix.request import Priority


class ReportSource(Protocol):
    """Where the scheduler reads reports. Times are in the clock of the source; the scheduler only compares them."""

    def latest(self, instance_id: int) -> tuple[InstanceLoad, bool]:
        """Return the latest report, and whether it is settled: without a `touch` no later one shows more freeness."""

    def earliest_loss(self, instance_id: int, blocks: float) -> float:
        """Return a time before which the instance cannot fill `blocks` more blocks unless it is touched."""


class FreenessRanking:
    """The freest instance for one class of requests, found from upper bounds that are sharpened only where needed."""

    def __init__(
        self, instance_ids: Sequence[int], reports: ReportSource, rule: FreenessRule, priority: Priority
    ) -> None:
        self.unsettled = set(instance_ids)
        self._reports = reports
        self._rule = rule
        self._priority = priority
        self._entry: dict[int, tuple[float, int]] = {}
        self._heap: list[tuple[float, int]] = []  # (-freeness bound, -instance id); live if it is the id's _entry

    def freest(self) -> int:
        """Return the instance of highest freeness now; among equals the highest id, as the released code does."""
        for instance_id in sorted(self.unsettled):
            if self._sharpen(instance_id):
                self.unsettled.discard(instance_id)
        if len(self._heap) > 4 * len(self._entry) + 64:
            self._heap = sorted(self._entry.values())
        while True:
            top = self._heap[0]
            instance_id = -top[1]
            if self._entry[instance_id] is not top:
                heapq.heappop(self._heap)
                continue
            self._sharpen(instance_id)
            if self._entry[instance_id][0] <= top[0]:
                return instance_id

    def _sharpen(self, instance_id: int) -> bool:
        load, settled = self._reports.latest(instance_id)
        freeness = dispatch_freeness(load, self._rule, self._priority)
        entry = self._entry.get(instance_id)
        if entry is None or entry[0] != -freeness:
            entry = (-freeness, -instance_id)
            self._entry[instance_id] = entry
            heapq.heappush(self._heap, entry)
        return settled


class GlobalScheduler:
    """Decides where requests start and which instances exchange them."""

    def __init__(self, spec: Scheduler, instance_ids: Sequence[int], reports: ReportSource) -> None:
        self.spec = spec
        self._ids = sorted(instance_ids)
        self._reports = reports
        self._turn = 0
        self._rankings = {p: FreenessRanking(self._ids, reports, spec.freeness, p) for p in Priority}
        self._quiet_until: dict[int, float] = dict.fromkeys(self._ids, -math.inf)
        self._busy: set[int] = set()
        self._pairs: dict[int, int] = {}

    def touch(self, instance_id: int) -> None:
        """Note that the next report of this instance may differ from the last one by more than filled blocks."""
        self._rankings[Priority.NORMAL].unsettled.add(instance_id)
        self._rankings[Priority.HIGH].unsettled.add(instance_id)
        self._quiet_until[instance_id] = -math.inf

    def dispatch(self, priority: Priority) -> int:
        """Choose the instance for a new request."""
        if self.spec.dispatch is DispatchRule.round_robin:
            instance_id = self._ids[self._turn % len(self._ids)]
            self._turn += 1
            return instance_id
        return self._rankings[priority].freest()

    def migration_round(self, now: float) -> list[Pair]:
        """Pair sources with destinations and return the pairs that can start now: neither side is in a migration."""
        due = {i: self._reports.latest(i) for i, until in self._quiet_until.items() if until <= now}
        sources = [i for i, (load, settled) in due.items() if self._examine(load, settled)]
        policy = self.spec.migration
        if not sources or (self._busy.issuperset(sources) and not policy.persistent_pairs):
            self._pairs.clear()
            return []
        loads = [due[i][0] if i in due else self._reports.latest(i)[0] for i in self._ids]
        pairs = pair(loads, policy, self.spec.freeness)
        self._pairs = {p.source: p.destination for p in pairs}
        return [p for p in pairs if self.may_start(p)]

    def may_start(self, move: Pair) -> bool:
        """Tell whether neither side of a pair takes part in a migration."""
        return move.source not in self._busy and move.destination not in self._busy

    def migration_started(self, move: Pair) -> None:
        """Mark both sides busy: an instance takes part in one migration at a time."""
        self._busy |= {move.source, move.destination}

    def migration_ended(self, move: Pair) -> Pair | None:
        """Free both sides; return the pair again if it persists and its source is to send the next request."""
        self._busy -= {move.source, move.destination}
        if self.spec.migration.persistent_pairs and self._pairs.get(move.source) == move.destination:
            return move
        return None

    def _examine(self, load: InstanceLoad, settled: bool) -> bool:
        """Tell whether an instance is a source; if not, note how long it cannot become one without being touched."""
        policy = self.spec.migration
        freeness = migration_freeness(load, self.spec.freeness)
        if is_source(load, freeness, policy):
            return True
        if settled:
            requests = load.running + (1 if load.waiting else 0)
            spare = (freeness - policy.out_threshold_blocks) * requests if requests else math.inf
            self._quiet_until[load.instance_id] = self._reports.earliest_loss(load.instance_id, spare)
        return False
