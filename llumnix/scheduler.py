"""The global scheduler: reports in, decisions out. Sans-IO, and owner of no request state.

It does not know whether its instances are simulated or real. A `ReportSource` answers with the report of an instance
that is visible now, and with an outlook that stays good until the instance is touched; the outlook lets the scheduler
leave most instances alone when it dispatches a request or holds a migration round.

Instances may come and go. Who carries out a scaling decision knows which ones start, says so with instance_up() and
instance_down(), and marks the reports of an instance that is to be terminated as draining, from the decision on.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from llumnix.load import InstanceLoad, migration_batch, migration_freeness
from llumnix.policies import scaling
from llumnix.policies.dispatch import DispatchRule, Merit, merit, two_of
from llumnix.policies.migration import Pair, is_destination, is_source, pair
from llumnix.policies.spec import Scheduler
from llumnix.request import Priority

FEW_INSTANCES = 48
"""A look at all of so many instances is quicker than asking which of them can be part of a pair (measured)."""


class ReportSource(Protocol):
    """Where the scheduler reads reports. Times are in the clock of the source; the scheduler only compares them."""

    def latest(self, instance_id: int) -> InstanceLoad:
        """Return the report that is visible now."""

    def outlook(self, instance_id: int) -> tuple[InstanceLoad, InstanceLoad]:
        """Return what reports can say until the instance is touched: the first load, then the second with ever fewer
        free blocks, as running requests fill them. Where reports come one by one, both are the latest one.
        """

    def earliest_loss(self, instance_id: int, blocks: float) -> float:
        """Return a time before which the second load of the outlook cannot lose `blocks` free blocks, whoever leaves,
        unless the instance is touched for worse.
        """


class Ranking:
    """The best instances by one measure of merit, found from upper bounds that are sharpened only where needed.

    Among equals the last id comes first in a ranking for dispatch, as the released code has it, and the first id in one
    for migration.
    """

    def __init__(
        self, instance_ids: Sequence[int], reports: ReportSource, merit: Merit, *, last_first: bool = True
    ) -> None:
        self.touched = set(instance_ids)
        self._reports = reports
        self._merit = merit
        self._sign = -1 if last_first else 1
        self._entry: dict[int, tuple[float, int]] = {}
        self._heap: list[tuple[float, int]] = []  # (-merit bound, signed instance id); live if it is the id's _entry

    def settle(self) -> None:
        """Value the touched instances: an upper bound for each, which is exact where reports come one by one."""
        reports, merit = self._reports, self._merit
        for instance_id in self.touched:
            first, second = reports.outlook(instance_id)
            value = merit(first)
            if second is not first:
                value = max(value, merit(second))
            self._enter(instance_id, value)
        self.touched.clear()
        if len(self._heap) > 4 * len(self._entry) + 64:
            self._heap = sorted(self._entry.values())

    def best(self) -> int:
        """Return the instance of highest merit now."""
        self.settle()
        return self._sign * self._settled_top()[1]

    def best_of_all(self, count: int) -> list[int]:
        """Return the `count` instances of highest merit now, best first; fewer if not so many have more than -inf."""
        self.settle()
        taken: list[tuple[float, int]] = []
        while len(taken) < min(count, len(self._entry)):
            top = self._settled_top()
            if top[0] == math.inf:
                break
            taken.append(heapq.heappop(self._heap))
        for top in taken:
            heapq.heappush(self._heap, top)
        return [self._sign * signed_id for _, signed_id in taken]

    def forget(self, instance_id: int) -> None:
        """Leave an instance out from now on."""
        self.touched.discard(instance_id)
        self._entry.pop(instance_id, None)

    def _settled_top(self) -> tuple[float, int]:
        """Return the top of the heap once its bound is its merit now."""
        heap, entries, reports, merit = self._heap, self._entry, self._reports, self._merit
        while True:
            top = heap[0]
            instance_id = self._sign * top[1]
            if entries.get(instance_id) is not top:
                heapq.heappop(heap)
                continue
            load = reports.latest(instance_id)
            value = merit(load)
            if value == -top[0]:
                return top
            self._enter(instance_id, value)
            first, second = reports.outlook(instance_id)
            if first is not second and load is not second:
                self.touched.add(instance_id)  # the second load of its outlook is still to come

    def _enter(self, instance_id: int, value: float) -> None:
        entry = (-value, self._sign * instance_id)
        self._entry[instance_id] = entry
        heapq.heappush(self._heap, entry)


class GlobalScheduler:
    """Decides where requests start, which instances exchange them, and how many instances there are.

    `uniform` draws numbers from [0, 1), for rules that choose at random: the same numbers give the same choices.
    `draining` are those of the instances that are to be terminated already.
    """

    def __init__(
        self,
        spec: Scheduler,
        instance_ids: Sequence[int],
        reports: ReportSource,
        uniform: Callable[[], float],
        draining: Collection[int] = (),
    ) -> None:
        self.spec = spec
        self._ids = sorted(instance_ids)
        self._reports = reports
        self._uniform = uniform
        self._in_turn = spec.dispatch is DispatchRule.round_robin
        self._of_two = spec.dispatch is DispatchRule.power_of_two
        self._turn = 0
        self._rankings: dict[Priority, Ranking] = {}  # of the classes that have occurred
        self._takers = Ranking(self._ids, reports, self._room, last_first=False)
        self._touched: set[int] = set()  # since the last round
        self._due = set(self._ids)  # may have become sources since they were looked at
        self._quiet: list[tuple[float, int]] = []  # heap of the others: until when each of them cannot be one
        self._quiet_until: dict[int, float] = {}
        self._busy: set[int] = set()
        self._pairs: dict[int, int] = {}
        self._draining = set(draining)

    def touch(self, instance_id: int, *, worse: bool = True) -> None:
        """Note that the outlook of this instance has changed; `worse` unless requests have done nothing but leave."""
        for ranking in self._rankings.values():
            ranking.touched.add(instance_id)
        self._touched.add(instance_id)
        if worse:
            self._due.add(instance_id)

    def settle(self) -> None:
        """Value the touched instances now: dispatch() would do it, and whoever waits for that may be in more haste."""
        for ranking in self._rankings.values():
            ranking.settle()

    def dispatch(self, priority: Priority) -> int:
        """Choose the instance for a new request."""
        if self.spec.dispatch is DispatchRule.first:
            return next(i for i in self._ids if i not in self._draining)
        if self._in_turn:
            while True:
                instance_id = self._ids[self._turn % len(self._ids)]
                self._turn += 1
                if instance_id not in self._draining:
                    return instance_id
        if self._of_two:
            return self._better_of_two(priority)
        if priority not in self._rankings:
            value = merit(self.spec.dispatch, self.spec.freeness, priority)
            self._rankings[priority] = Ranking(self._ids, self._reports, value)
        return self._rankings[priority].best()

    def migration_round(self, now: float) -> list[Pair]:
        """Pair sources with destinations and return the pairs that can start now: neither side is in a migration."""
        policy, quiet, touched = self.spec.migration, self._quiet, len(self._touched)
        self._takers.touched |= self._touched
        self._touched.clear()
        while quiet and quiet[0][0] <= now:
            until, instance_id = heapq.heappop(quiet)
            if self._quiet_until.get(instance_id) == until:
                self._due.add(instance_id)
        # without persistent pairs a round without an idle source changes nothing
        due = list(self._due if policy.persistent_pairs else self._due - self._busy)
        if not any(self._is_source(i, now) for i in due):
            self._pairs.clear()
            return []
        loads = [self._reports.latest(instance_id) for instance_id in self._candidates(now, touched)]
        pairs = pair(loads, policy, self.spec.freeness)
        self._pairs = {p.source: p.destination for p in pairs}
        return [p for p in pairs if self.may_start(p)]

    def may_start(self, move: Pair) -> bool:
        """Tell whether neither side of a pair takes part in a migration."""
        return move.source not in self._busy and move.destination not in self._busy

    def migration_started(self, move: Pair) -> None:
        """Mark both sides busy: an instance takes part in one migration at a time."""
        self._busy |= {move.source, move.destination}

    def migration_ended(self, move: Pair, *, refused: bool = False) -> bool:
        """Free both sides; return whether the pair persists, so that its source is to send the next request.

        A destination that has `refused` for lack of room is not asked again before the next round.
        """
        self._busy -= {move.source, move.destination}
        if refused:
            self._pairs.pop(move.source, None)
        return self.may_go_on(move)

    def may_go_on(self, move: Pair) -> bool:
        """Tell whether a pair persists and neither side takes part in a migration."""
        paired = self._pairs.get(move.source) == move.destination
        return self.spec.migration.persistent_pairs and paired and self.may_start(move)

    # --- scaling

    def scaling_check(self, starting: int) -> scaling.Decision | None:
        """Decide about the number of instances, of which `starting` more do not serve yet; whoever asks carries it out.

        From here on a victim is no destination of a pair, and takes no turn of round-robin.
        """
        loads = [self._reports.latest(instance_id) for instance_id in self._ids]
        decision = scaling.decide(loads, starting, self.spec.scaling, self.spec.freeness)
        match decision:
            case scaling.ScaleDown():
                self._draining.add(decision.instance_id)
                self._pairs = {s: d for s, d in self._pairs.items() if d != decision.instance_id}
            case scaling.CancelDrain():
                self._draining.discard(decision.instance_id)
                self._pairs.pop(decision.instance_id, None)
        return decision

    def instance_up(self, instance_id: int) -> None:
        """An instance that was asked for serves now, under an id that no other has had."""
        insort(self._ids, instance_id)
        self.touch(instance_id)

    def may_terminate(self, instance_id: int) -> bool:
        """Tell whether the scheduler still wants an instance gone and no migration goes from or to it."""
        return instance_id in self._draining and instance_id not in self._busy

    def instance_down(self, instance_id: int) -> None:
        """A drained instance, on which no request is left, is gone."""
        self._draining.remove(instance_id)
        self._ids.remove(instance_id)
        self._touched.discard(instance_id)
        self._due.discard(instance_id)
        self._quiet_until.pop(instance_id, None)
        self._pairs.pop(instance_id, None)
        for ranking in (self._takers, *self._rankings.values()):
            ranking.forget(instance_id)

    def _better_of_two(self, priority: Priority) -> int:
        """Draw two instances and return the better one; the first drawn if they are equal."""
        ids = [i for i in self._ids if i not in self._draining] if self._draining else self._ids
        one, other = (ids[place] for place in two_of(len(ids), self._uniform(), self._uniform()))
        value = merit(self.spec.dispatch, self.spec.freeness, priority)
        return other if value(self._reports.latest(other)) > value(self._reports.latest(one)) else one

    def _candidates(self, now: float, touched: int) -> Sequence[int]:
        """Return all sources and as many of the best destinations: no other instance can be part of a pair.

        Among few instances, or if so many were `touched` since the last round, all of them.
        """
        if len(self._ids) <= FEW_INSTANCES + 2 * touched:
            return self._ids
        sources = [i for i in list(self._due) if self._is_source(i, now)]
        return sources + self._takers.best_of_all(len(sources))

    def _room(self, load: InstanceLoad) -> float:
        """Value an instance as a destination: its freeness; -inf for one that is none."""
        freeness = migration_freeness(load, self.spec.freeness)
        return freeness if is_destination(load, freeness, self.spec.migration) else -math.inf

    def _is_source(self, instance_id: int, now: float) -> bool:
        """Tell whether an instance is a source; if not, note how long it cannot become one unless touched for worse.

        With a threshold of zero or more, requests that leave never make a source of an instance that is none: at least
        as much memory is then shared by fewer.
        """
        policy, rule = self.spec.migration, self.spec.freeness
        first, second = self._reports.outlook(instance_id)
        freeness = migration_freeness(second, rule)
        if not is_source(second, freeness, policy) and (
            first is second or not is_source(first, migration_freeness(first, rule), policy)
        ):
            spare = (freeness - policy.out_threshold_blocks) * migration_batch(second, rule)
            until = self._reports.earliest_loss(instance_id, spare) if second.running else math.inf
            if until > now:
                if policy.out_threshold_blocks >= 0:
                    self._due.discard(instance_id)
                    self._quiet_until[instance_id] = until
                    if until < math.inf:
                        heapq.heappush(self._quiet, (until, instance_id))
                return False
        load = self._reports.latest(instance_id)
        return is_source(load, migration_freeness(load, rule), policy)
