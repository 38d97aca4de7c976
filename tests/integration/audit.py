"""Looks over the scheduler's shoulder: every decision of a run against brute force over all reports of that moment."""

from __future__ import annotations

import random

from cases import CHOICES

from llumnix.cluster.virtual import VirtualCluster
from llumnix.load import InstanceLoad, dispatch_freeness
from llumnix.policies import scaling
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.migration import Pair, pair
from llumnix.policies.spec import Scheduler
from llumnix.request import Priority


class Audit:
    """Checks each decision of a cluster as it is taken; `dispatches` and `rounds` count them."""

    def __init__(self, cluster: VirtualCluster, spec: Scheduler) -> None:
        self.dispatches = self.rounds = self.started = 0
        self._cluster, self._spec = cluster, spec
        self._uniform = random.Random(CHOICES).random
        self._busy: list[int] = []
        self._paired: set[Pair] = set()
        scheduler = cluster.scheduler
        self._dispatch, self._migration_round = scheduler.dispatch, scheduler.migration_round
        self._migration_started, self._migration_ended = scheduler.migration_started, scheduler.migration_ended
        self._scaling_check, self._starting = scheduler.scaling_check, 0
        self._instance_up = scheduler.instance_up
        scheduler.dispatch = self.dispatch
        scheduler.migration_round = self.migration_round
        scheduler.migration_started = self.migration_started
        scheduler.migration_ended = self.migration_ended
        scheduler.scaling_check = self.scaling_check
        scheduler.instance_up = self.instance_up

    def _loads(self) -> list[InstanceLoad]:
        return [self._cluster.latest(i.instance_id) for i in self._cluster.fleet.up]

    def dispatch(self, priority: Priority) -> int:
        chosen = self._dispatch(priority)
        serving = [x for x in self._loads() if not x.draining]
        assert chosen in [x.instance_id for x in serving], f"dispatch {self.dispatches} goes where nothing serves"
        expected = self._expected(serving, priority)
        if self._spec.dispatch is DispatchRule.round_robin and self._spec.scaling.enabled:
            expected = chosen  # whose turn it is depends on who came and went
        assert chosen == expected, f"dispatch {self.dispatches} goes to {chosen}, the best is {expected}"
        self.dispatches += 1
        return chosen

    def _expected(self, loads: list[InstanceLoad], priority: Priority) -> int:
        match self._spec.dispatch:
            case DispatchRule.round_robin:
                return self.dispatches % len(loads)
            case DispatchRule.first:
                return loads[0].instance_id
            case DispatchRule.power_of_two:
                one = loads.pop(int(self._uniform() * len(loads)))
                other = int(self._uniform() * len(loads))
                rival = loads[other] if loads else one
                fewer = rival.running + rival.waiting < one.running + one.waiting
                return rival.instance_id if fewer else one.instance_id
            case DispatchRule.freest:
                cost = {x.instance_id: -dispatch_freeness(x, self._spec.freeness, priority) for x in loads}
            case DispatchRule.least_requests:
                cost = {x.instance_id: x.running + x.waiting for x in loads}
            case DispatchRule.least_kv:
                wanted = {x.instance_id: x.waiting_tokens / x.block_size_tokens for x in loads}
                cost = {
                    x.instance_id: (x.total_blocks - x.free_blocks + wanted[x.instance_id]) / x.total_blocks
                    for x in loads
                }
        return max(i for i in cost if cost[i] == min(cost.values()))

    def migration_round(self, now: float) -> list[Pair]:
        pairs = self._migration_round(now)
        paired = pair(reversed(self._loads()), self._spec.migration, self._spec.freeness)
        expected = [p for p in paired if p.source not in self._busy and p.destination not in self._busy]
        assert pairs == expected, f"round {self.rounds} starts {pairs}, by brute force {expected}"
        self._paired = set(paired)
        self.rounds += 1
        return pairs

    def migration_started(self, move: Pair) -> None:
        assert move.source not in self._busy
        assert move.destination not in self._busy
        assert move in self._paired, f"{move} is not a pair of the last round"
        self._busy += [move.source, move.destination]
        self.started += 1
        self._migration_started(move)

    def scaling_check(self, starting: int) -> scaling.Decision | None:
        loads = list(reversed(self._loads()))
        assert starting == self._starting
        decision = self._scaling_check(starting)
        assert decision == scaling.decide(loads, self._starting, self._spec.scaling, self._spec.freeness)
        match decision:
            case scaling.ScaleUp():
                self._starting += decision.instances
            case scaling.ScaleDown():
                self._paired = {p for p in self._paired if p.destination != decision.instance_id}
            case scaling.CancelDrain():
                self._paired = {p for p in self._paired if p.source != decision.instance_id}
        return decision

    def instance_up(self, instance_id: int) -> None:
        self._starting -= 1
        self._instance_up(instance_id)

    def migration_ended(self, move: Pair, *, refused: bool = False) -> bool:
        self._busy.remove(move.source)
        self._busy.remove(move.destination)
        again = self._migration_ended(move, refused=refused)
        if refused:
            self._paired.discard(move)
        assert again == (self._spec.migration.persistent_pairs and move in self._paired)
        return again
