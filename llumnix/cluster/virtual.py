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
from typing import Any

import numpy as np

from llumnix.cluster.fleet import Fleet
from llumnix.cluster.moves import Move
from llumnix.cluster.result import Columns, RunResult
from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.chunked import ChunkedInstance
from llumnix.engines.sim.cost import PS_PER_S, CostModel
from llumnix.engines.sim.instance import Segment, SimInstance
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
_MESSAGE, _STEP_END = 0, 1
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
        self._sequence = 0
        self._now_ps = 0
        self._unfinished = len(workload)
        self._step_ends = 0
        self._step_rows: list[tuple[int, int, Segment]] | None = [] if engine.record_steps else None
        self._event_rows: list[tuple[int, str, int | None, int | None, str | None]] = []
        self._sample_rows: list[tuple[int, InstanceLoad]] = []
        self._sample_period_ps = round(engine.sample_period_s * PS_PER_S)
        self._front_end_ps = round(engine.front_end_s * PS_PER_S)
        self._moves: dict[SimRequest, Move] = {}
        self.requests = _requests(workload)
        scaling = scheduler.scaling
        if scaling.enabled and not scaling.min_instances <= cluster.instances <= scaling.max_instances:
            raise ConfigError(
                f"cluster.instances={cluster.instances} must lie between scheduler.scaling.min_instances="
                f"{scaling.min_instances} and max_instances={scaling.max_instances}: it is the number to begin with."
            )
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
                    if self._step_rows is not None:
                        self._step_rows.append((key, self._now_ps, instances[key].segment()))
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
                for pair in self.scheduler.migration_round(timed_ps):
                    self._start_move(pair)
            elif check_ps == timed_ps:
                check_ps += round(scaling.check_period_s * PS_PER_S)
                self.fleet.check()
            else:
                sample_ps += self._sample_period_ps
                self._sample_rows.extend((timed_ps, instance.present_load(timed_ps)) for instance in self.fleet.up)
                if not heap and arrival_ps == _NEVER:
                    raise RuntimeError(f"{self._unfinished} requests are left and nothing will ever happen to them")
            timed_ps = min(arrival_ps, round_ps, check_ps, sample_ps)
        return self._result()

    def send(self, action: Callable[[], None], delay_ps: int) -> None:
        """Run `action` after `delay_ps` > 0: a message, or a copy that takes this long."""
        self._sequence += 1
        heapq.heappush(self._heap, (self._now_ps + delay_ps, _MESSAGE, self._sequence, action))

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
        request_id = None if request is None else request.arrival_order
        self._event_rows.append((self._now_ps, kind, instance_id, request_id, detail))

    def _result(self) -> RunResult:
        time_ps, kind, instance_id, request_id, detail = _transpose(self._event_rows, 5)
        loads = [load for _, load in self._sample_rows]
        rule = self._spec.freeness
        return RunResult(
            requests=_request_columns(self.requests, self._front_end_ps / PS_PER_S),
            events={
                "time_s": _seconds(time_ps),
                "kind": kind,
                "instance_id": instance_id,
                "request_id": request_id,
                "detail": detail,
            },
            instances={
                "time_s": _seconds([ps for ps, _ in self._sample_rows]),
                "instance_id": [load.instance_id for load in loads],
                "running": [load.running for load in loads],
                "waiting": [load.waiting for load in loads],
                "free_blocks": [load.free_blocks for load in loads],
                "total_blocks": [load.total_blocks for load in loads],
                "head_blocks": [load.head_blocks for load in loads],
                "freeness": [migration_freeness(load, rule) for load in loads],
                "draining": [load.draining for load in loads],
            },
            steps=None if self._step_rows is None else _step_columns(self._step_rows, self._cost),
            counters={"segments": self._step_ends},
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


def _transpose(rows: list[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _seconds(times_ps: list[int | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return picoseconds as seconds, NaN for None; to the nanosecond, well below any modelled effect."""
    return np.array([np.nan if ps is None else ps / PS_PER_S for ps in times_ps], dtype=np.float64)


def _step_columns(rows: list[tuple[int, int, Segment]], cost: CostModel) -> Columns:
    return {
        "start_s": _seconds([segment.start_ps for *_, segment in rows]),
        "end_s": _seconds([end_ps for _, end_ps, _ in rows]),
        "instance_id": [instance_id for instance_id, *_ in rows],
        "steps": [segment.steps for *_, segment in rows],
        "duration_s": _seconds([end_ps - seg.start_ps - seg.steps * cost.gap_ps for _, end_ps, seg in rows]),
        "batch": [segment.batch for *_, segment in rows],
        "tokens": [segment.tokens for *_, segment in rows],
    }


def _request_columns(requests: list[SimRequest], front_end_s: float) -> Columns:
    arrival_s = _seconds([r.arrival_ps for r in requests])
    return {
        "request_id": [r.arrival_order for r in requests],
        "arrival_s": arrival_s,
        "sent_s": arrival_s,
        "dispatch_s": np.where([r.instance_first is None for r in requests], np.nan, arrival_s + front_end_s),
        "first_token_s": _seconds([r.first_token_ps for r in requests]),
        "end_s": _seconds([r.end_ps for r in requests]),
        "prompt_tokens": [r.prompt_tokens for r in requests],
        "output_tokens": [r.output_tokens for r in requests],
        "priority": [int(r.priority) for r in requests],
        "instance_first": [r.instance_first for r in requests],
        "instance_last": [r.instance_last for r in requests],
        "preemptions": [r.preemptions for r in requests],
        "preemption_loss_s": _seconds([r.preemption_loss_ps for r in requests]),
        "migrations": [r.migrations for r in requests],
        "migration_downtime_s": _seconds([r.downtime_ps for r in requests]),
        "migration_gap_s": _seconds([r.gap_ps for r in requests]),
        "max_token_gap_s": _seconds([r.max_gap_ps for r in requests]),
        "exec_s": _seconds([r.exec_ps for r in requests]),
        "status": [r.status for r in requests],
        "error": [r.error for r in requests],
    }
