"""The simulated cluster: an event heap in virtual time around the real scheduler, policies and migration protocol.

Events at one instant run in the order arrivals, messages between instances, migration rounds, scaling checks, samples,
ends of steps.
Instances influence each other only through messages that take time, so that no result depends on which of two
simultaneous step ends comes first.
"""

from __future__ import annotations

import gc
import heapq
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

from llumnix.cluster.fleet import Fleet
from llumnix.cluster.moves import Move
from llumnix.cluster.result import Columns, RunResult
from llumnix.cluster.row_log import Array, RowLog
from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.chunked import ChunkedInstance
from llumnix.engines.sim.cost import PS_PER_S, CostModel
from llumnix.engines.sim.instance import SimInstance
from llumnix.engines.sim.prefill_first import PrefillFirstInstance
from llumnix.engines.sim.request import SimRequest
from llumnix.engines.sim.spec import Batching, SimEngine
from llumnix.errors import ConfigError
from llumnix.load import InstanceLoad, migration_freeness
from llumnix.migration import AbortReason
from llumnix.policies.migration import Pair
from llumnix.policies.spec import Scheduler
from llumnix.request import Priority, Workload
from llumnix.scheduler import GlobalScheduler

INSTANCE_TYPES: dict[Batching, type[SimInstance]] = {
    Batching.prefill_first: PrefillFirstInstance,
    Batching.chunked: ChunkedInstance,
}
_NEVER = 1 << 62
_NONE = -1  # stands for no time, no instance or no request in columns of integers
_MESSAGE, _STEP_END = 0, 1
_EVENT = {"time_ps": int, "kind": object, "instance_id": int, "request_id": int, "detail": object}
_SAMPLE = {
    "time_ps": int,
    "instance_id": int,
    "running": int,
    "waiting": int,
    "free_blocks": int,
    "total_blocks": int,
    "head_blocks": int,
    "freeness": float,
    "draining": bool,
}
_STEP = {"end_ps": int, "instance_id": int, "start_ps": int, "steps": int, "batch": int, "tokens": int}
_NOTHING: tuple[int, int, int, Any] = (_NEVER, _STEP_END, 0, None)


def simulate(
    workload: Workload,
    cluster: ClusterSpec,
    engine: SimEngine,
    cost: CostModel,
    scheduler: Scheduler,
    *,
    uniform: Callable[[], float],
    progress: Callable[[int, int], None] | None = None,
) -> RunResult:
    """Serve `workload` in virtual time until every request has ended.

    `uniform` draws from [0, 1) for dispatch rules that choose at random. `progress(done, total)` is called about every
    hundredth of the requests.
    """
    virtual = VirtualCluster(workload, cluster, engine, cost, scheduler, uniform)
    collecting = gc.isenabled()
    gc.disable()  # a run makes many objects that all live to its end, which the collector would visit for nothing
    try:
        return virtual.run(progress)
    finally:
        if collecting:
            gc.enable()


class VirtualCluster:
    """Instances, clock and event heap of one simulated run. It is the scheduler's ReportSource; its clock is in ps."""

    def __init__(
        self,
        workload: Workload,
        cluster: ClusterSpec,
        engine: SimEngine,
        cost: CostModel,
        scheduler: Scheduler,
        uniform: Callable[[], float],
        instance_type: type[SimInstance] | None = None,
    ) -> None:
        blocks = cluster.kv_blocks if cluster.kv_blocks is not None else cost.spec.kv_blocks
        if blocks < 1:
            raise ConfigError("The number of KV blocks is not known for this model and GPU; set cluster.kv_blocks=N.")
        self._cost = cost
        self._spec = scheduler
        self._block_size_tokens = cluster.block_size_tokens
        self._heap: list[tuple[int, int, int, Any]] = []
        self._messages = 0
        self._now_ps = 0
        self._unfinished = len(workload)
        self._step_ends = self._rounds = 0
        self._steps = RowLog(**_STEP) if engine.record_steps else None
        self._events = RowLog(**_EVENT)
        self._samples = RowLog(**_SAMPLE)
        self._sample_period_ps = round(engine.sample_period_s * PS_PER_S)
        self._front_end_ps = round(engine.front_end_s * PS_PER_S)
        self._moves: dict[SimRequest, Move] = {}
        self.requests = _requests(workload)
        scaling = scheduler.scaling
        scaling.check_initial(cluster.instances)
        self.scheduler = GlobalScheduler(scheduler, range(cluster.instances), self, uniform)
        chosen = instance_type or INSTANCE_TYPES[engine.batching]

        def build(instance_id: int) -> SimInstance:
            return chosen(
                instance_id,
                cluster,
                engine,
                blocks,
                cost,
                scheduler.queue_order,
                scheduler.load_reports,
                arm=self._arm,
                touch=self.scheduler.touch,
                on_preempted=self._on_preempted,
                on_frozen=self._on_frozen,
                on_finished=self._on_finished,
            )

        self.fleet = Fleet(self, scaling, self.scheduler, build, cluster.instances)
        self.instances = self.fleet.instances

    # --- ReportSource

    def latest(self, instance_id: int) -> InstanceLoad:
        """See ReportSource; as stale as the scheduler spec says."""
        return self.instances[instance_id].latest(self._now_ps)

    def outlook(self, instance_id: int) -> tuple[InstanceLoad, InstanceLoad]:
        """See ReportSource."""
        return self.instances[instance_id].outlook(self._now_ps)

    def earliest_loss(self, instance_id: int, blocks: float) -> float:
        """See ReportSource; in ps."""
        return self.instances[instance_id].earliest_loss_ps(self._now_ps, blocks)

    # --- the loop

    def run(self, progress: Callable[[int, int], None] | None = None) -> RunResult:
        """Play all events; every request is finished or rejected afterwards."""
        heap, instances, arrivals, total = self._heap, self.instances, self.requests, len(self.requests)
        next_arrival = 0
        arrival_ps = arrivals[0].arrival_ps if arrivals else _NEVER
        policy = self._spec.migration
        period_ps = round(policy.period_s * PS_PER_S)
        round_ps = period_ps if policy.enabled else _NEVER
        sample_ps = 0
        scaling = self._spec.scaling
        check_ps = round(scaling.first_check_s * PS_PER_S) if scaling.enabled else _NEVER
        if scaling.enabled:
            self.fleet.begin()
        timed_ps = min(arrival_ps, round_ps, check_ps, sample_ps)  # the next event that is not on the heap
        tick = max(1, total // 100)
        while self._unfinished:
            top = heap[0] if heap else _NOTHING
            if top[0] < timed_ps or (top[0] == timed_ps != arrival_ps and top[1] == _MESSAGE):
                heapq.heappop(heap)
                self._now_ps, kind, key, payload = top
                if kind == _MESSAGE:
                    payload()
                elif instances[key].version == payload:
                    self._step_ends += 1
                    if self._steps is not None:
                        self._steps.add((self._now_ps, key, *instances[key].segment()))
                    instances[key].boundary(self._now_ps)
                continue
            self._now_ps = timed_ps
            if arrival_ps == timed_ps:
                self._send(arrivals[next_arrival])
                next_arrival += 1
                arrival_ps = arrivals[next_arrival].arrival_ps if next_arrival < total else _NEVER
                if progress is not None and next_arrival % tick == 0:
                    progress(next_arrival, total)
            elif round_ps == timed_ps:
                round_ps += period_ps
                self._rounds += 1
                for pair in self.scheduler.migration_round(timed_ps):
                    self._start_move(pair)
            elif check_ps == timed_ps:
                check_ps += round(scaling.check_period_s * PS_PER_S)
                self.fleet.check()
            else:
                sample_ps += self._sample_period_ps
                self._sample()
                if not heap and arrival_ps == _NEVER:
                    raise RuntimeError(f"{self._unfinished} requests are left and nothing will ever happen to them")
            timed_ps = min(arrival_ps, round_ps, check_ps, sample_ps)
        return self._result()

    def send(self, action: Callable[[], None], delay_ps: int) -> None:
        """Run `action` after `delay_ps` > 0: a message, or a copy that takes this long."""
        self._messages += 1
        heapq.heappush(self._heap, (self._now_ps + delay_ps, _MESSAGE, self._messages, action))

    def _arm(self, instance_id: int, end_ps: int, version: int) -> None:
        heapq.heappush(self._heap, (end_ps, _STEP_END, instance_id, version))

    # --- requests

    def _send(self, request: SimRequest) -> None:
        if self._front_end_ps:
            self.send(partial(self._arrive, request), self._front_end_ps)
        else:
            self._arrive(request)

    def _arrive(self, request: SimRequest) -> None:
        if not self.instances[0].fits(request.prompt_tokens, request.output_tokens):
            request.status = "rejected"
            request.end_ps = self._now_ps
            request.error = "needs more KV blocks or batched tokens than an instance has"
            self._unfinished -= 1
            self.note("reject", None, request)
            return
        instance_id = self.scheduler.dispatch(request.priority)
        self.note("dispatch", instance_id, request)
        self.instances[instance_id].enqueue(request, self._now_ps)

    def _on_finished(self, request: SimRequest) -> None:
        self._unfinished -= 1
        if request.moving:
            self._moves[request].request_gone(AbortReason.finished)
        if self.fleet.draining and request.instance_last is not None:
            self.fleet.request_left(request.instance_last)

    def _on_preempted(self, request: SimRequest) -> None:
        self.note("preempt", request.instance_last, request)
        if request.moving:
            self._moves[request].request_gone(AbortReason.preempted)

    # --- migration

    def _start_move(self, pair: Pair) -> None:
        source, destination = self.instances[pair.source], self.instances[pair.destination]
        move = Move.begin(self, source, destination, self._spec.migration, self._block_size_tokens)
        if move is None:
            return
        self.scheduler.migration_started(pair)
        self._moves[move.request] = move
        move.start()

    def move_ended(self, move: Move, *, refused: bool) -> None:
        """Free both sides and let a persistent pair go on."""
        del self._moves[move.request]
        self.fleet.request_left(move.source.instance_id)
        self.fleet.request_left(move.destination.instance_id)
        pair = Pair(move.source.instance_id, move.destination.instance_id)
        if self.scheduler.migration_ended(pair, refused=refused):
            self.send(partial(self._start_again, pair), self._cost.control_ps)

    def _start_again(self, pair: Pair) -> None:
        if self.scheduler.may_go_on(pair):
            self._start_move(pair)

    def _on_frozen(self, request: SimRequest, now_ps: int) -> None:
        self._moves[request].request_frozen(now_ps)

    # --- records

    @property
    def now_ps(self) -> int:
        """The present time in ps."""
        return self._now_ps

    @property
    def cost(self) -> CostModel:
        """Costs of steps, copies and messages."""
        return self._cost

    def note(self, kind: str, instance_id: int | None, request: SimRequest | None, detail: str | None = None) -> None:
        """Add a row to the events."""
        request_id = _NONE if request is None else request.arrival_order
        self._events.add((self._now_ps, kind, _NONE if instance_id is None else instance_id, request_id, detail))

    def _sample(self) -> None:
        """Add a row for each instance to the samples; and make arrays of the rows that there are."""
        now_ps, rule = self._now_ps, self._spec.freeness
        for instance in self.fleet.up:
            load = instance.present_load(now_ps)
            self._samples.add(
                (
                    now_ps,
                    load.instance_id,
                    load.running,
                    load.waiting,
                    load.free_blocks,
                    load.total_blocks,
                    load.head_blocks,
                    migration_freeness(load, rule),
                    load.draining,
                )
            )
        for rows in (self._events, self._samples, self._steps):
            if rows is not None:
                rows.pack()

    def _result(self) -> RunResult:
        return RunResult(
            requests=_request_columns(self.requests, self._front_end_ps / PS_PER_S),
            events=_timed(self._events.columns()),
            instances=_timed(self._samples.columns()),
            steps=None if self._steps is None else _step_columns(self._steps.columns(), self._cost),
            counters={"segments": self._step_ends, "messages": self._messages, "rounds": self._rounds},
            sizes=self.fleet.sizes() if self._spec.scaling.enabled else None,
        )


def _requests(workload: Workload) -> list[SimRequest]:
    arrival_ps = np.rint(workload.arrival_s * PS_PER_S).astype(np.int64).tolist()
    classes = {int(p): p for p in Priority}
    columns = zip(
        arrival_ps,
        workload.prompt_tokens.tolist(),
        workload.output_tokens.tolist(),
        workload.priority.tolist(),
        strict=True,
    )
    return [SimRequest(i, ps, p, max(o, 1), classes[c]) for i, (ps, p, o, c) in enumerate(columns)]


def _timed(columns: dict[str, Array]) -> Columns:
    """Return the columns with their times in seconds."""
    return {"time_s": _seconds(columns.pop("time_ps")), **columns}


def _seconds(times_ps: Array) -> Array:
    """Return picoseconds as seconds, NaN for a negative time: there is none. Rounded once, also above 2^53 ps."""
    if times_ps.max(initial=0) < 1 << 53:
        seconds = times_ps / PS_PER_S
    else:
        seconds = np.array([ps / PS_PER_S for ps in times_ps.tolist()])
    return np.where(times_ps < 0, np.nan, seconds)


def _step_columns(rows: dict[str, Array], cost: CostModel) -> Columns:
    start_ps, end_ps, steps = rows["start_ps"], rows["end_ps"], rows["steps"]
    return {
        "start_s": _seconds(start_ps),
        "end_s": _seconds(end_ps),
        "instance_id": rows["instance_id"],
        "steps": steps,
        "duration_s": _seconds(end_ps - start_ps - steps * cost.gap_ps),
        "batch": rows["batch"],
        "tokens": rows["tokens"],
    }


def _request_columns(requests: list[SimRequest], front_end_s: float) -> Columns:
    def column(name: str) -> Array:
        return np.fromiter(map(attrgetter(name), requests), np.int64, len(requests))

    def column_with_gaps(name: str) -> Array:
        values = [_NONE if value is None else value for value in map(attrgetter(name), requests)]
        return np.array(values, dtype=np.int64)

    arrival_s = _seconds(column("arrival_ps"))
    instance_first = column_with_gaps("instance_first")
    return {
        "request_id": column("arrival_order"),
        "arrival_s": arrival_s,
        "sent_s": arrival_s,
        "dispatch_s": np.where(instance_first < 0, np.nan, arrival_s + front_end_s),
        "first_token_s": _seconds(column_with_gaps("first_token_ps")),
        "end_s": _seconds(column_with_gaps("end_ps")),
        "prompt_tokens": column("prompt_tokens"),
        "output_tokens": column("output_tokens"),
        "priority": column("priority"),
        "instance_first": instance_first,
        "instance_last": column_with_gaps("instance_last"),
        "preemptions": column("preemptions"),
        "preemption_loss_s": _seconds(column("preemption_loss_ps")),
        "migrations": column("migrations"),
        "migration_downtime_s": _seconds(column("downtime_ps")),
        "migration_gap_s": _seconds(column("gap_ps")),
        "max_token_gap_s": _seconds(column("max_gap_ps")),
        "exec_s": _seconds(column("exec_ps")),
        "status": [r.status for r in requests],
        "error": [r.error for r in requests],
    }
