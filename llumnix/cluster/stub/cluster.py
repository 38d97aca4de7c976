"""Instances that wait instead of computing, around schedulers that are timed (§6.6, Figure 16).

The paper lets each instance sleep for the length of a step. Here a virtual clock is moved on by it, and by the measured
processor time of whatever scheduling the instance has to wait for, so that hundreds of instances fit on one machine
without disturbing each other. The scheduler's process serves one message after the other: a message that finds it busy
waits, in virtual time, until its turn comes.
"""

from __future__ import annotations

import heapq
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from llumnix.cluster.spec import ClusterSpec
from llumnix.cluster.stub.process import Asked, Reply
from llumnix.cluster.stub.programs import Arrival, Message, Report, Round, StepEnded
from llumnix.engines.sim.cost import PS_PER_S, CostModel
from llumnix.engines.stub.batch import BatchScheduler, Plan
from llumnix.request import Workload

PS_PER_NS = 1000
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Served:
    """What became of one request, times in ps; `tokens` are those delivered so far."""

    arrival_ps: int
    prompt_tokens: int
    output_tokens: int
    dispatch_ps: int = 0
    instance_id: int = -1
    first_token_ps: int = 0
    last_token_ps: int = 0
    longest_gap_ps: int = 0
    exec_ps: int = 0
    tokens: int = 0
    prefills: int = 0


@dataclass(slots=True)
class Timings:
    """One entry per event, in ps: iterations with their steps and the stalls after them, dispatches, rounds."""

    ended_ps: list[int] = field(default_factory=list)
    step_ps: list[int] = field(default_factory=list)
    stall_ps: list[int] = field(default_factory=list)
    dispatch_ps: list[int] = field(default_factory=list)
    round_ps: list[int] = field(default_factory=list)
    scheduler_busy_ps: int = 0


class StubCluster(ABC):
    """Virtual clock, arrivals and steps; the subclasses say who plans a step and how long an instance waits for it."""

    def __init__(
        self, workload: Workload, cluster: ClusterSpec, cost: CostModel, scheduler: Asked, round_s: float | None
    ) -> None:
        self.requests = [
            Served(round(arrival_s * PS_PER_S), int(prompt), max(int(output), 1))
            for arrival_s, prompt, output in zip(
                workload.arrival_s, workload.prompt_tokens, workload.output_tokens, strict=True
            )
        ]
        self.timings = Timings()
        self.idle = set(range(cluster.instances))
        self._cost = cost
        self._scheduler = scheduler
        self._scheduler_free_ps = 0
        self._round_ps = None if round_s is None else round(round_s * PS_PER_S)
        self._plans: dict[int, Plan] = {}
        self._begun_ps: dict[int, int] = {}
        self._heap: list[tuple[int, int, Callable[[int], None]]] = []
        self._sequence = 0
        self._unfinished = len(self.requests)

    def run(self, progress: Progress | None = None) -> None:
        """Serve every request to its end."""
        for request_id, request in enumerate(self.requests):
            self.at(request.arrival_ps, partial(self.arrived, request_id))
        if self._round_ps is not None:
            self.at(self._round_ps, self._round)
        total, tick = len(self.requests), max(1, len(self.requests) // 100)
        while self._unfinished:
            now_ps, _, happens = heapq.heappop(self._heap)
            left = self._unfinished
            happens(now_ps)
            if progress is not None and left // tick != self._unfinished // tick:
                progress(total - self._unfinished, total)

    @abstractmethod
    def arrived(self, request_id: int, now_ps: int) -> None:
        """A request has come."""

    @abstractmethod
    def step_ended(self, instance_id: int, outputs: list[tuple[int, int]], now_ps: int) -> tuple[Plan | None, int]:
        """Return the instance's next plan and when it can begin."""

    def at(self, time_ps: int, happens: Callable[[int], None]) -> None:
        """Let something happen; what is asked for first comes first at one instant."""
        self._sequence += 1
        heapq.heappush(self._heap, (time_ps, self._sequence, happens))

    def ask(self, message: Message, now_ps: int) -> tuple[Reply, int]:
        """Give the scheduler's process a message; return its reply and when it is there."""
        reply = self._scheduler.ask(message)
        busy_ps = reply.scheduler_ns * PS_PER_NS
        self.timings.scheduler_busy_ps += busy_ps
        self._scheduler_free_ps = max(now_ps, self._scheduler_free_ps) + busy_ps
        return reply, self._scheduler_free_ps

    def dispatched(self, request_id: int, instance_id: int, now_ps: int) -> None:
        """Note where and when a request was sent."""
        request = self.requests[request_id]
        request.instance_id, request.dispatch_ps = instance_id, now_ps
        self.timings.dispatch_ps.append(now_ps - request.arrival_ps)

    def begin(self, instance_id: int, plan: Plan | None, now_ps: int) -> None:
        """Start a step, whose length is that of the simulator's cost model, or let the instance idle."""
        if plan is None:
            self.idle.add(instance_id)
            return
        self.idle.discard(instance_id)
        self._plans[instance_id], self._begun_ps[instance_id] = plan, now_ps
        rows = plan.rows
        if plan.prefill:
            tokens, squares = sum(r.new_tokens for r in rows), sum(r.new_tokens**2 for r in rows)
            length_ps = self._cost.prefill_ps(len(rows), tokens, squares)
        else:
            length_ps = self._cost.decode_ps(len(rows), sum(r.context_tokens + 1 for r in rows))
        self.at(now_ps + length_ps, lambda end_ps: self._end(instance_id, end_ps))

    def _end(self, instance_id: int, now_ps: int) -> None:
        plan, begun_ps = self._plans[instance_id], self._begun_ps[instance_id]
        for row in plan.rows:
            self._token(self.requests[row.request_id], plan.prefill, now_ps - begun_ps - self._cost.gap_ps, now_ps)
        following, begins_ps = self.step_ended(instance_id, [(row.request_id, 0) for row in plan.rows], now_ps)
        self.timings.ended_ps.append(now_ps)
        self.timings.step_ps.append(now_ps - begun_ps)
        self.timings.stall_ps.append(begins_ps - now_ps)
        self.begin(instance_id, following, begins_ps)

    def _token(self, request: Served, prefill: bool, step_ps: int, now_ps: int) -> None:
        if request.tokens == 0:
            request.first_token_ps = now_ps
        else:
            request.longest_gap_ps = max(request.longest_gap_ps, now_ps - request.last_token_ps)
        request.prefills += prefill
        request.tokens += 1
        request.exec_ps += step_ps
        request.last_token_ps = now_ps
        self._unfinished -= request.tokens == request.output_tokens

    def _round(self, now_ps: int) -> None:
        assert self._round_ps is not None
        reply, _ = self.ask(Round(now_ps / PS_PER_S), now_ps)
        self.timings.round_ps.append(reply.scheduler_ns * PS_PER_NS)
        self.at(now_ps + self._round_ps, self._round)


class CentralizedCluster(StubCluster):
    """Every iteration of every instance waits for the one scheduler."""

    def arrived(self, request_id: int, now_ps: int) -> None:
        """The scheduler queues the request; it answers with a plan if that wakes an idle instance."""
        request = self.requests[request_id]
        message = Arrival(
            now_ps / PS_PER_S, request_id, request.prompt_tokens, request.output_tokens, frozenset(self.idle)
        )
        reply, done_ps = self.ask(message, now_ps)
        assert isinstance(reply.answer, tuple)
        instance_id, plan = reply.answer
        assert isinstance(instance_id, int)
        self.dispatched(request_id, instance_id, done_ps)
        if isinstance(plan, Plan):
            self.begin(instance_id, plan, done_ps)

    def step_ended(self, instance_id: int, outputs: list[tuple[int, int]], now_ps: int) -> tuple[Plan | None, int]:
        """Tokens go to the scheduler, and the plan comes back."""
        reply, done_ps = self.ask(StepEnded(now_ps / PS_PER_S, instance_id, outputs), now_ps)
        assert reply.answer is None or isinstance(reply.answer, Plan)
        return reply.answer, done_ps + reply.asker_ns * PS_PER_NS


class PerInstanceCluster(StubCluster):
    """Every instance plans its own steps and sends a report that it does not wait for."""

    def __init__(
        self,
        workload: Workload,
        cluster: ClusterSpec,
        cost: CostModel,
        scheduler: Asked,
        round_s: float | None,
        total_blocks: int,
        clock: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        StubCluster.__init__(self, workload, cluster, cost, scheduler, round_s)
        self._batches = [BatchScheduler(i, cluster, total_blocks) for i in range(cluster.instances)]
        self._clock = clock

    def arrived(self, request_id: int, now_ps: int) -> None:
        """The global scheduler chooses an instance, and the request goes there."""
        request = self.requests[request_id]
        message = Arrival(now_ps / PS_PER_S, request_id, request.prompt_tokens, request.output_tokens)
        reply, done_ps = self.ask(message, now_ps)
        instance_id = reply.answer
        assert isinstance(instance_id, int)
        self.dispatched(request_id, instance_id, done_ps)
        self.at(done_ps, lambda then_ps: self._enqueue(instance_id, request_id, then_ps))

    def step_ended(self, instance_id: int, outputs: list[tuple[int, int]], now_ps: int) -> tuple[Plan | None, int]:
        """The instance's own scheduler plans; its report costs the instance the sending and the scheduler the rest."""
        batch = self._batches[instance_id]
        before = self._clock()
        plan = batch.next_step(outputs)
        load = batch.load()
        planned_ps = now_ps + (self._clock() - before) * PS_PER_NS
        reply, _ = self.ask(Report(now_ps / PS_PER_S, load), planned_ps)
        return plan, planned_ps + reply.asker_ns * PS_PER_NS

    def _enqueue(self, instance_id: int, request_id: int, now_ps: int) -> None:
        request = self.requests[request_id]
        batch = self._batches[instance_id]
        batch.add(request_id, request.prompt_tokens, request.output_tokens)
        if instance_id in self.idle:
            self.begin(instance_id, batch.next_step(()), now_ps)
