"""A slow instance to check the fast one against: one iteration at a time, one counter per request, no closed forms.

Written from the rules of vLLM 0.1.x (prompts first, watermark, token budget, sequence limit, a free block at each
request's turn, the youngest recomputed) and from the meaning of the records; it shares only the cost of one step with
the engine that it checks. It promises nothing about reports to come and touches at every change, so a scheduler on top
of it looks at every instance every time.
"""

from __future__ import annotations

from collections.abc import Callable

from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.cost import CostModel
from llumnix.engines.sim.instance import Segment
from llumnix.engines.sim.request import SimRequest
from llumnix.engines.sim.spec import SimEngine
from llumnix.load import InstanceLoad
from llumnix.policies.spec import LoadReports, QueueOrder
from llumnix.request import Priority


class ReferenceInstance:
    """Continuous batching step by step; the public face of SimInstance."""

    def __init__(
        self,
        instance_id: int,
        spec: ClusterSpec,
        engine: SimEngine,
        total_blocks: int,
        cost: CostModel,
        queue_order: QueueOrder,
        load_reports: LoadReports,
        *,
        arm: Callable[[int, int, int], None],
        touch: Callable[[int], None],
        on_preempted: Callable[[SimRequest], None],
        on_frozen: Callable[[SimRequest, int], None],
        on_finished: Callable[[SimRequest], None],
    ) -> None:
        self.instance_id = instance_id
        self.total_blocks = total_blocks
        self.watermark_blocks = int(spec.watermark_fraction * total_blocks)
        self.version = 0
        self.free_blocks = total_blocks
        self.running: list[SimRequest] = []
        self.waiting: list[SimRequest] = []
        self.migrating = False
        self.draining = False
        self.inbound = 0

        self._spec, self._cost = spec, cost
        self._queue_order, self._load_reports = queue_order, load_reports
        self._arm, self._touch = arm, touch
        self._on_preempted, self._on_frozen, self._on_finished = on_preempted, on_frozen, on_finished

        self._kv_tokens: dict[SimRequest, int] = {}
        self._held_blocks: dict[SimRequest, int] = {}
        self._reserved_blocks = 0
        self._prefilling: list[SimRequest] = []
        self._joining: list[SimRequest] = []
        self._freezing: SimRequest | None = None
        self._frozen: SimRequest | None = None
        self._decoding = False
        self._steps = 0
        self._step_start_ps = 0
        self._step_report = self._report = self._load()

    # --- requests

    @property
    def busy(self) -> bool:
        return self._decoding or bool(self._prefilling)

    @property
    def empty(self) -> bool:
        return not (self._held_blocks or self._reserved_blocks or self.waiting or self.inbound)

    @property
    def high_priority(self) -> int:
        here = [*self.waiting, *self._prefilling, *self.running, *self._joining]
        return sum(r.priority is Priority.HIGH for r in here)

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        if prompt_tokens > self._spec.max_num_batched_tokens:
            return False
        last_kv_tokens = prompt_tokens + output_tokens - 1  # the last token is delivered, not stored
        return self.total_blocks - self._blocks(last_kv_tokens) > self.watermark_blocks

    def enqueue(self, request: SimRequest, now_ps: int) -> None:
        if request.instance_first is None:
            request.instance_first = self.instance_id
        request.instance_last = self.instance_id
        place = len(self.waiting)
        if request.priority is Priority.HIGH and self._queue_order is QueueOrder.front:
            place = self._normal_from()
        elif request.priority is Priority.HIGH and self._queue_order is QueueOrder.second_to_last:
            place = max(0, place - 1)
        self.waiting.insert(place, request)
        self._changed(now_ps)

    # --- reports

    def latest(self, now_ps: int) -> InstanceLoad:
        return self._load() if self._load_reports is LoadReports.immediate else self._report

    def outlook(self, now_ps: int) -> tuple[InstanceLoad, InstanceLoad]:
        load = self.latest(now_ps)
        return load, load

    def present_load(self, now_ps: int) -> InstanceLoad:
        return self._load()

    def earliest_loss_ps(self, now_ps: int, blocks: float) -> float:
        return now_ps

    def steps_completed(self, now_ps: int) -> int:
        return self._steps

    def set_draining(self, draining: bool) -> None:
        self.draining = draining
        for report in (self._report, self._step_report):
            report.draining = draining
        self._touch(self.instance_id)

    # --- migration

    def reserve(self, blocks: int, now_ps: int, *, seat: bool) -> bool:
        if self.free_blocks - blocks < self.watermark_blocks:
            return False
        seats_taken = len(self.running) + len(self._prefilling) + len(self._joining) + self.inbound
        if seat and seats_taken + 1 > self._spec.max_num_seqs:
            return False
        if seat:
            self.inbound += 1
        self._reserved_blocks += blocks
        self.free_blocks -= blocks
        self._changed(now_ps)
        return True

    def cancel(self, blocks: int, now_ps: int) -> None:
        self.inbound -= 1
        self._reserved_blocks -= blocks
        self.free_blocks += blocks
        self._changed(now_ps)

    def release(self, blocks: int, now_ps: int) -> None:
        assert self._frozen is not None
        assert self._held_blocks.pop(self._frozen) == blocks
        del self._kv_tokens[self._frozen]
        self._frozen = None
        self.free_blocks += blocks
        self._changed(now_ps)

    def set_migrating(self, migrating: bool, now_ps: int) -> None:
        self.migrating = migrating
        self._changed(now_ps)

    def movable(self) -> list[SimRequest]:
        for request in self.running:
            request.kv_base = self._kv_tokens[request]  # what context_tokens shows
        return [r for r in self.running if not r.moving]

    def blocks_of(self, request: SimRequest, now_ps: int) -> int:
        return self._held_blocks[request]

    def freeze(self, request: SimRequest, now_ps: int) -> None:
        assert self._freezing is None
        self._freezing = request
        self._changed(now_ps)

    def join(self, request: SimRequest, now_ps: int, *, inbound: bool) -> None:
        request.instance_last = self.instance_id
        if inbound:
            self.inbound -= 1
            blocks = self._blocks(request.tokens)
            self._reserved_blocks -= blocks
            assert self._reserved_blocks == 0  # all that was copied is needed, and nothing else
            self._kv_tokens[request] = request.tokens
            self._held_blocks[request] = blocks
        else:
            assert self._frozen is request
            self._frozen = None
        self._joining.append(request)
        self._changed(now_ps)

    # --- steps

    def segment(self) -> Segment:
        if self._decoding:
            return Segment(self._step_start_ps, 1, len(self.running), len(self.running))
        return Segment(self._step_start_ps, 1, len(self._prefilling), sum(r.tokens for r in self._prefilling))

    def boundary(self, now_ps: int) -> None:
        """End the step under way, which began at `_step_start_ps`, and begin the next one."""
        exec_ps = now_ps - self._step_start_ps - self._cost.gap_ps
        self._report = self._step_report
        self._steps += 1
        prefilled, self._prefilling = self._prefilling, []
        if prefilled:
            self.running = sorted([*self.running, *prefilled], key=_by_arrival)
        self._decoding = False
        for request in prefilled or list(self.running):
            request.exec_ps += exec_ps
            self._deliver_token(request, now_ps)
        self._begin_step(now_ps)

    def _deliver_token(self, request: SimRequest, now_ps: int) -> None:
        request.generated += 1
        if request.first_token_ps is None:
            request.first_token_ps = now_ps
        else:
            request.max_gap_ps = max(request.max_gap_ps, now_ps - request.last_token_ps)
        if request.preempted_ps is not None:
            usual_ps = self._cost.decode_ps(8, self._kv_tokens[request])  # what a small batch would have taken
            request.preemption_loss_ps += max(0, now_ps - request.preempted_ps - usual_ps)
            request.preempted_ps = None
        if request.frozen_ps is not None:
            request.downtime_ps += now_ps - request.frozen_ps
            request.frozen_ps = None
        if request.moved:
            request.gap_ps += now_ps - request.last_token_ps
            request.moved = False
        request.last_token_ps = now_ps
        if request.generated == request.output_tokens:
            request.status = "finished"
            request.end_ps = now_ps
            self.running.remove(request)
            self._give_back(request)
            self._on_finished(request)

    def _give_back(self, request: SimRequest) -> None:
        self.free_blocks += self._held_blocks.pop(request)
        del self._kv_tokens[request]

    def _begin_step(self, now_ps: int) -> None:
        """Begin one step at `now_ps` if there is anything to do."""
        self.running = sorted([*self.running, *self._joining], key=_by_arrival)
        self._joining = []
        if self._freezing in self.running:
            self._frozen = self._freezing
            self.running.remove(self._frozen)
            self._frozen.tokens = self._kv_tokens[self._frozen]
            self._on_frozen(self._frozen, now_ps)
        self._freezing = None

        duration_ps = self._prefill_step()
        if duration_ps is None and self.running:
            duration_ps = self._decode_step(now_ps)
            if duration_ps is None:
                duration_ps = self._prefill_step()
        assert self.free_blocks + self._reserved_blocks + sum(self._held_blocks.values()) == self.total_blocks
        assert self.free_blocks >= 0
        if duration_ps is not None:
            if self.migrating:
                duration_ps += self._cost.migration_step_ps
            self._step_start_ps = now_ps
            self._step_report = self._load()
            self.version += 1
            self._arm(self.instance_id, now_ps + duration_ps, self.version)
        self._touch(self.instance_id)

    def _prefill_step(self) -> int | None:
        """Admit from the head of the queue; the duration of the step, None if nobody gets in."""
        batched_tokens = 0
        while self.waiting:
            request = self.waiting[0]
            blocks = self._blocks(request.tokens)
            if self.free_blocks - blocks < self.watermark_blocks:
                break
            if self._prefilling and batched_tokens + request.tokens > self._spec.max_num_batched_tokens:
                break
            if len(self.running) + len(self._prefilling) + self.inbound + 1 > self._spec.max_num_seqs:
                break
            batched_tokens += request.tokens
            self.free_blocks -= blocks
            self._held_blocks[request] = blocks
            self._kv_tokens[request] = request.tokens
            self._prefilling.append(self.waiting.pop(0))
        if not self._prefilling:
            return None
        squares = sum(r.tokens**2 for r in self._prefilling)
        return self._cost.prefill_ps(len(self._prefilling), batched_tokens, squares)

    def _decode_step(self, now_ps: int) -> int | None:
        """Give each request, oldest first, room for one more token; the duration, None if all were preempted."""
        todo, served = list(self.running), []
        while todo:
            request = todo.pop(0)
            while self.free_blocks == 0:
                victim = todo.pop() if todo else request
                self._preempt(victim, now_ps)
                if victim is request:
                    break
            if request in self.running:
                served.append(request)
                self._kv_tokens[request] += 1
                needed = self._blocks(self._kv_tokens[request]) - self._held_blocks[request]
                self._held_blocks[request] += needed
                self.free_blocks -= needed
        assert served == self.running
        if not served:
            return None
        self._decoding = True
        return self._cost.decode_ps(len(served), sum(self._kv_tokens[r] for r in served))

    def _preempt(self, request: SimRequest, now_ps: int) -> None:
        self.running.remove(request)
        self.free_blocks += self._held_blocks.pop(request)
        del self._kv_tokens[request]
        request.tokens = request.prompt_tokens + request.generated
        request.preempted_ps = now_ps
        request.preemptions += 1
        behind_high = self._queue_order is QueueOrder.front and request.priority is Priority.NORMAL
        self.waiting.insert(self._normal_from() if behind_high else 0, request)
        self._on_preempted(request)

    # --- helpers

    def _changed(self, now_ps: int) -> None:
        if not self.busy:
            self._begin_step(now_ps)
        self._touch(self.instance_id)

    def _normal_from(self) -> int:
        """Return the place behind the last high-priority request of the queue's front."""
        place = 0
        while place < len(self.waiting) and self.waiting[place].priority is Priority.HIGH:
            place += 1
        return place

    def _blocks(self, tokens: int) -> int:
        full, started = divmod(tokens, self._spec.block_size_tokens)
        return full + (started > 0)

    def _load(self) -> InstanceLoad:
        return InstanceLoad(
            instance_id=self.instance_id,
            running=len(self.running) + len(self._prefilling) + len(self._joining),
            waiting=len(self.waiting),
            preempted=sum(r.preempted_ps is not None for r in self.waiting),
            high_priority=self.high_priority,
            free_blocks=self.free_blocks,
            total_blocks=self.total_blocks,
            watermark_blocks=self.watermark_blocks,
            block_size_tokens=self._spec.block_size_tokens,
            waiting_tokens=sum(r.tokens for r in self.waiting),
            head_tokens=self.waiting[0].tokens if self.waiting else 0,
            draining=self.draining,
        )


def _by_arrival(request: SimRequest) -> int:
    return request.arrival_order
