"""The global scheduler in wall-clock time: keeps the last report of every instance and starts migrations in rounds.

Decisions are those of llumnix.scheduler; here are only reports that arrive, instances that come and go, and the calls
that a decision leads to. No token and no KV block passes here. All state is rebuilt from reports after a restart.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from llumnix.load import InstanceLoad
from llumnix.policies.migration import Pair
from llumnix.policies.scaling import CancelDrain, Decision, ScaleDown
from llumnix.policies.spec import LoadReports, Scheduler
from llumnix.request import Priority
from llumnix.scheduler import GlobalScheduler

log = logging.getLogger(__name__)

NEVER_S = float("inf")


class NoInstance(RuntimeError):  # noqa: N818  says what is the case, not what went wrong here
    """No instance has reported lately: there is nowhere to send a request."""


@dataclass(slots=True)
class _Last:
    load: InstanceLoad
    received_s: float


class Control:
    """GlobalScheduler behind a lock, over the instances whose last report is younger than `report_limit_s`.

    `start_migration(pair, ended)` carries out a pair without blocking and calls `ended(moved)` afterwards. It is the
    scheduler's ReportSource: the outlook is the last report, since every newer one is announced with touch().
    load_reports=immediate adds to it the requests sent since, of which the instance cannot have told yet.
    """

    def __init__(
        self,
        spec: Scheduler,
        start_migration: Callable[[Pair, Callable[[bool], None]], None],
        *,
        report_limit_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._spec = spec
        self._start_migration = start_migration
        self._report_limit_s = report_limit_s
        self._clock = clock
        self._uniform = uniform
        self._counts_own = spec.load_reports is LoadReports.immediate
        self._lock = threading.RLock()
        self._last: OrderedDict[int, _Last] = OrderedDict()  # by when it was received, oldest first
        self._moves: set[Pair] = set()
        self._scheduler: GlobalScheduler | None = None
        self._stop = threading.Event()
        self.reports = 0
        self.rounds = 0
        self.pairs_started = 0

    # --- ReportSource

    def latest(self, instance_id: int) -> InstanceLoad:
        """Return the last report received."""
        return self._last[instance_id].load

    def outlook(self, instance_id: int) -> tuple[InstanceLoad, InstanceLoad]:
        """Return the last report received, twice: nothing changes before the next one."""
        load = self._last[instance_id].load
        return load, load

    def earliest_loss(self, instance_id: int, blocks: float) -> float:
        """Never: whatever an instance fills comes with a new report, which touches it."""
        return NEVER_S

    # --- what instances and front ends tell

    def report(self, load: InstanceLoad) -> None:
        """Take the load report of an instance; the first one makes it known."""
        with self._lock:
            self.reports += 1
            before = self._last.get(load.instance_id)
            self._last[load.instance_id] = _Last(load, self._clock())
            self._last.move_to_end(load.instance_id)
            if before is None or before.load.draining is not load.draining:
                self._rebuild()
            elif self._scheduler is not None:
                self._scheduler.touch(load.instance_id)
                self._scheduler.settle()

    def instance_down(self, instance_id: int) -> None:
        """Forget an instance until it reports again."""
        with self._lock:
            if self._last.pop(instance_id, None) is not None:
                self._rebuild()

    def dispatch(self, priority: Priority) -> int:
        """Choose the instance for a new request; NoInstance if none has reported lately."""
        with self._lock:
            self._forget_silent()
            if self._scheduler is None or all(last.load.draining for last in self._last.values()):
                raise NoInstance("no instance that takes requests has reported to the global scheduler")
            chosen = self._scheduler.dispatch(priority)
            if self._counts_own:
                last = self._last[chosen]
                last.load = replace(last.load, waiting=last.load.waiting + 1)
                self._scheduler.touch(chosen)
            return chosen

    def traffic(self) -> dict[str, int]:
        """Count the control messages so far: load reports, migration rounds, pairs started; and known instances."""
        counts = {"reports": self.reports, "rounds": self.rounds, "pairs": self.pairs_started}
        return counts | {"instances": len(self._last)}

    # --- scaling

    def scaling_check(self, instance_ids: Collection[int]) -> Decision | None:
        """Decide about the number of instances: these are all that there are, of which those that have not reported
        start, for the first time or again. Whoever asks carries it out; that it has been is known by reports.
        """
        with self._lock:
            self._forget_silent()
            if not self._last.keys() <= set(instance_ids):
                self._last = OrderedDict((id_, last) for id_, last in self._last.items() if id_ in instance_ids)
                self._rebuild()
            if self._scheduler is None:
                return None
            decision = self._scheduler.scaling_check(len(instance_ids) - len(self._last))
            if isinstance(decision, ScaleDown | CancelDrain):
                last = self._last[decision.instance_id]
                last.load = replace(last.load, draining=isinstance(decision, ScaleDown))
                self._scheduler.touch(decision.instance_id)
            return decision

    def may_terminate(self, instance_id: int) -> bool:
        """Tell whether an instance drains, as far as is known, and no migration goes from or to it."""
        with self._lock:
            return self._scheduler is not None and self._scheduler.may_terminate(instance_id)

    # --- migration rounds

    def round(self) -> None:
        """Pair instances once and start what can start."""
        with self._lock:
            self._forget_silent()
            self.rounds += 1
            pairs = self._scheduler.migration_round(self._clock()) if self._scheduler is not None else []
            for pair in pairs:
                self._begin(pair)

    def run(self) -> None:
        """Hold a round every migration period until stop(); for a thread of its own."""
        due_s = self._clock()
        while not self._stop.is_set():
            if self._spec.migration.enabled:
                self.round()
            due_s = max(due_s + self._spec.migration.period_s, self._clock())
            self._stop.wait(due_s - self._clock())

    def stop(self) -> None:
        """End run()."""
        self._stop.set()

    def _begin(self, pair: Pair) -> None:
        assert self._scheduler is not None
        self._scheduler.migration_started(pair)
        self._moves.add(pair)
        self.pairs_started += 1
        self._start_migration(pair, lambda moved: self._ended(pair, moved))

    def _ended(self, pair: Pair, moved: bool) -> None:
        with self._lock:
            self._moves.discard(pair)
            goes_on = self._scheduler is not None and self._scheduler.migration_ended(pair, refused=not moved)
            if goes_on and not self._stop.is_set():
                self._begin(pair)

    def _forget_silent(self) -> None:
        oldest_s = self._clock() - self._report_limit_s
        known = len(self._last)
        while self._last:
            instance_id, last = next(iter(self._last.items()))
            if last.received_s >= oldest_s:
                break
            log.warning("instance %d has not reported for %.1f s: left out", instance_id, self._report_limit_s)
            del self._last[instance_id]
        if len(self._last) < known:
            self._rebuild()

    def _rebuild(self) -> None:
        """Schedule over the instances known now; migrations under way keep both their sides busy."""
        ids = sorted(self._last)
        draining = [id_ for id_ in ids if self._last[id_].load.draining]
        self._scheduler = GlobalScheduler(self._spec, ids, self, self._uniform, draining) if ids else None
        if self._scheduler is not None:
            for pair in self._moves:
                self._scheduler.migration_started(pair)
