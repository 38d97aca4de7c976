"""A simulated vLLM instance that skips from event to event; how a step is filled is left to its batching mode.

Between two events its batch does not change, so the next k decode steps have a closed-form duration and a closed-form
block demand; they form one *segment*. Whatever could change the batch (an arrival, a reservation, a migration) cuts the
segment at the next step boundary. tests/ holds a reference that walks step by step and must agree to the picosecond.

The step counter makes requests static while they decode: KV tokens = kv_base + counter. A request needs a new block in
the step after counter value s if kv_base + s is a multiple of the block size, so a histogram of kv_base residues gives
the blocks that any number of steps will take.

A batching mode is a subclass that says which requests fit, how blocks that a request leaves become free, and what the
next step or segment is: llumnix.engines.sim.prefill_first and llumnix.engines.sim.chunked.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.cost import CostModel
from llumnix.engines.sim.gaps import GapHistory
from llumnix.engines.sim.request import SimRequest
from llumnix.engines.sim.spec import SimEngine
from llumnix.load import InstanceLoad
from llumnix.policies.spec import LoadReports, QueueOrder
from llumnix.request import Priority

_TURN = attrgetter("turn")
_HIGH = Priority.HIGH  # a name of the module is ten times as quick to look up as a member of an enum


class Segment(NamedTuple):
    """Steps of one batch without a change between them; each computes `tokens` tokens."""

    start_ps: int
    steps: int
    batch: int
    tokens: int


class SimInstance(ABC):
    """Continuous batching of one engine in virtual time.

    `arm(instance_id, end_ps, version)` asks for a call of `boundary` at end_ps; a later arm makes earlier ones void.
    `touch(instance_id, worse=)` tells that the outlook has changed, and whether requests did more than leave.
    """

    __slots__ = (
        "_arm",
        "_batch",
        "_block_size",
        "_cost",
        "_counter",
        "_cut",
        "_decode_ps",
        "_decoding",
        "_end_ps",
        "_finishes",
        "_first_step_ps",
        "_freezing",
        "_fresh",
        "_gaps",
        "_immediate",
        "_joining",
        "_kv_base_sum",
        "_max_num_batched_tokens",
        "_max_num_seqs",
        "_on_finished",
        "_on_frozen",
        "_on_preempted",
        "_pending_blocks",
        "_prefilling",
        "_prefills",
        "_queue_order",
        "_report",
        "_residues",
        "_segment_free",
        "_start_ps",
        "_step_growth_ps",
        "_steps",
        "_touch",
        "_view",
        "_view_steps",
        "_view_until_ps",
        "_worse",
        "draining",
        "free_blocks",
        "high_priority",
        "inbound",
        "instance_id",
        "migrating",
        "preempted_waiting",
        "running",
        "total_blocks",
        "version",
        "waiting",
        "waiting_tokens",
        "watermark_blocks",
    )

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
        touch: Callable[..., None],
        on_preempted: Callable[[SimRequest], None],
        on_frozen: Callable[[SimRequest, int], None],
        on_finished: Callable[[SimRequest], None],
    ) -> None:
        self.instance_id = instance_id
        self.total_blocks = total_blocks
        self.watermark_blocks = int(spec.watermark_fraction * total_blocks)
        self.version = 0
        self.free_blocks = total_blocks  # as of the start of the current segment
        self.running: list[SimRequest] = []  # decoding, by turn
        self.waiting: deque[SimRequest] = deque()
        self.waiting_tokens = 0
        self.preempted_waiting = 0
        self.high_priority = 0  # waiting, running or in prefill
        self.migrating = False
        self.draining = False  # to be terminated: its reports say so
        self.inbound = 0  # reservations that will need a place in the batch

        self._block_size = spec.block_size_tokens
        self._max_num_seqs = spec.max_num_seqs
        self._max_num_batched_tokens = spec.max_num_batched_tokens
        self._cost = cost
        self._queue_order = queue_order
        self._immediate = load_reports is LoadReports.immediate
        self._arm, self._touch, self._on_preempted = arm, touch, on_preempted
        self._on_frozen, self._on_finished = on_frozen, on_finished

        self._counter = 0  # decode steps completed
        self._prefills = 0  # prefill steps completed
        self._kv_base_sum = 0
        self._residues = [0] * self._block_size  # residue h: requests that need a block when counter % block == h
        self._finishes: list[tuple[int, int]] = []  # (counter value at which it ends, turn), sorted
        self._prefilling: list[SimRequest] = []  # whose prompts the step under way computes
        self._joining: list[SimRequest] = []  # enter the batch at the next boundary: migrated in, or given back
        self._freezing: SimRequest | None = None
        self._pending_blocks = 0  # freed (+) or reserved (-) during the segment; takes effect at its end
        self._decode_ps = 0  # time spent in decode steps, without the gaps between them
        self._gaps = GapHistory()
        self._fresh: list[SimRequest] = []  # joined since the last decode step: their next gap starts elsewhere

        self._decoding = False  # what the current segment is; neither: idle
        self._start_ps = 0
        self._end_ps = 0
        self._steps = 0
        self._worse = False  # requests have come, or memory was reserved, since the scheduler was told
        self._cut = False  # the segment already ends at the first boundary after the last change
        self._first_step_ps = 0
        self._step_growth_ps = 0
        self._batch = 0
        self._report = self._load(0, total_blocks)  # of the last completed step before the segment
        self._view = self._report  # of the segment's steps: the same but for its free blocks, which are set when read
        self._view_steps = 0  # how many of the segment's steps the view, as it was last read, has seen ...
        self._view_until_ps = -1  # ... and until when that stays right
        self._segment_free = total_blocks
        self._prepare(engine)

    def _prepare(self, engine: SimEngine) -> None:  # noqa: B027  there may be nothing
        """Set up what a batching mode keeps besides."""

    # --- requests

    @property
    def busy(self) -> bool:
        """True while a step is running."""
        return self._decoding or bool(self._prefilling)

    @property
    def empty(self) -> bool:
        """True if no request is here or about to come. One that is frozen for a move is on the move's account."""
        return not (self.running or self.waiting or self._prefilling or self._joining or self.inbound)

    @abstractmethod
    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Tell whether a request can ever finish here, alone if need be."""

    def enqueue(self, request: SimRequest, now_ps: int) -> None:
        """Accept a new request."""
        if request.instance_first is None:
            request.instance_first = self.instance_id
        request.instance_last = self.instance_id
        waiting = self.waiting
        if request.priority is _HIGH:
            self.high_priority += 1
            if self._queue_order is QueueOrder.front:
                place = sum(r.priority is _HIGH for r in waiting)
                waiting.insert(place, request)
            elif self._queue_order is QueueOrder.second_to_last and waiting:
                waiting.insert(len(waiting) - 1, request)
            else:
                waiting.append(request)
        else:
            waiting.append(request)
        self.waiting_tokens += request.tokens
        self._worse = True
        self._wake(now_ps)

    # --- reports

    def latest(self, now_ps: int) -> InstanceLoad:
        """Return the report that is visible at `now_ps`; it belongs to the instance and is good until time moves on.

        completed_step: the state in which the last step that was completed before `now_ps` began.
        """
        if self._immediate:
            return self.present_load(now_ps)
        if now_ps <= self._view_until_ps:
            return self._view
        if not self._decoding:
            return self._report
        steps = self._completed_before(now_ps)
        if steps == 0:
            return self._report
        self._view_steps = steps
        self._view_until_ps = self._start_ps + self._elapsed_ps(steps + 1)
        self._view.free_blocks = self._segment_free - self._block_demand(steps)
        return self._view

    def outlook(self, now_ps: int) -> tuple[InstanceLoad, InstanceLoad]:
        """Return the report of the step before the segment, and that of the segment's steps as it was last read."""
        if self._immediate:
            load = self.present_load(now_ps)
            return load, load
        return self._report, self._view if self._decoding else self._report

    def present_load(self, now_ps: int) -> InstanceLoad:
        """Return the state at `now_ps`, the step under way included."""
        free = self._present_free(now_ps)
        batch = len(self.running) + len(self._prefilling) + len(self._joining)
        return self._load(batch, free)

    def earliest_loss_ps(self, now_ps: int, blocks: float) -> float:
        """Return a time before which the second load of the outlook cannot show `blocks` fewer free blocks."""
        if not self._decoding:
            return math.inf
        seen = self._completed_before(now_ps) if self._immediate else self._view_steps
        steps = seen + int(self._block_size * blocks / self._batch) - self._block_size
        return self._start_ps + steps * self._cost.decode_ps(1, 1)  # steps shrink as requests leave

    def steps_completed(self, now_ps: int) -> int:
        """Return how many steps, decode and prefill, have ended before `now_ps`."""
        return self._counter + self._prefills + (self._completed_before(now_ps) if self._decoding else 0)

    def set_draining(self, draining: bool) -> None:
        """Begin or end a drain. The scheduler has decided it and need not wait for a report to know."""
        self.draining = self._report.draining = self._view.draining = draining
        self._touch(self.instance_id, worse=True)

    # --- migration: called between steps or during one; takes effect at the next boundary

    def reserve(self, blocks: int, now_ps: int, *, seat: bool) -> bool:
        """Set blocks aside for a request that migrates in; `seat` on the first stage: it will need a place."""
        room = self._present_free(now_ps) - blocks >= self.watermark_blocks
        if seat and len(self.running) + len(self._prefilling) + len(self._joining) + self.inbound >= self._max_num_seqs:
            room = False
        if not room:
            return False
        self.inbound += seat
        self._worse = True
        self._change_free(-blocks, now_ps)
        return True

    def cancel(self, blocks: int, now_ps: int) -> None:
        """Give up a reservation of `blocks` blocks and its place."""
        self.inbound -= 1
        self._change_free(blocks, now_ps)

    def release(self, blocks: int, now_ps: int) -> None:
        """Free the blocks of a request that has moved away."""
        self._change_free(blocks, now_ps)

    def set_migrating(self, migrating: bool, now_ps: int) -> None:
        """Begin or end the slow-down that a copy causes."""
        self.migrating = migrating
        self._wake(now_ps)

    def movable(self) -> list[SimRequest]:
        """Return the decoding requests that are not already on the move."""
        return [r for r in self.running if not r.moving]

    def blocks_of(self, request: SimRequest, now_ps: int) -> int:
        """Return the blocks that a decoding request holds, the one of the step under way included."""
        counter = self._counter + (self._completed_before(now_ps) + 1 if self._decoding else 0)
        return -(-(request.kv_base + counter) // self._block_size)

    def freeze(self, request: SimRequest, now_ps: int) -> None:
        """Take the request out of the batch at the next boundary; `on_frozen` is called then if it is still there."""
        self._freezing = request
        self._wake(now_ps)

    def join(self, request: SimRequest, now_ps: int, *, inbound: bool) -> None:
        """Put a frozen request, its KV cache in place, into the batch: moved here (`inbound`), or given back."""
        self.inbound -= inbound
        request.instance_last = self.instance_id
        self._joining.append(request)
        self._worse = True
        if request.priority is _HIGH:
            self.high_priority += 1
        self._wake(now_ps)

    # --- steps

    def segment(self) -> Segment:
        """Return what is under way."""
        if self._decoding:
            return Segment(self._start_ps, self._steps, self._batch, self._batch)
        prompts = self._prefilling
        return Segment(self._start_ps, 1, len(prompts), sum(request.tokens for request in prompts))

    def boundary(self, now_ps: int) -> None:
        """End the current segment and begin the next one."""
        if self._decoding:
            self._end_decode(now_ps)
        if self._prefilling:
            self._end_prefill(now_ps)
        self._schedule(now_ps)

    def _wake(self, now_ps: int) -> None:
        """Let a change take effect: at once if idle, else at the next step boundary."""
        if self._decoding:
            if not self._cut:
                self._cut = True
                steps = self._completed_before(now_ps) + 1
                if steps < self._steps:
                    self._steps = steps
                    self._end_ps = self._start_ps + self._elapsed_ps(steps)
                    self.version += 1
                    self._arm(self.instance_id, self._end_ps, self.version)
        elif not self._prefilling:
            self._schedule(now_ps)
        if self._immediate:
            self._touch(self.instance_id, worse=True)

    def _end_decode(self, now_ps: int) -> None:
        steps = self._steps
        demand = self._block_demand(steps)
        self.free_blocks -= demand
        self._report = self._view
        self._report.free_blocks = self._segment_free - demand
        counter = self._counter
        self._decode_ps += now_ps - self._start_ps - steps * self._cost.gap_ps
        first_end_ps = self._start_ps + self._first_step_ps
        last_step_ps = self._first_step_ps + self._step_growth_ps * (steps - 1)
        self._gaps.add(counter + 1, first_end_ps, steps, now_ps, last_step_ps)
        if self._fresh:
            for request in self._fresh:
                gap_ps = first_end_ps - request.last_token_ps
                if gap_ps > request.max_gap_ps:
                    request.max_gap_ps = gap_ps
                if request.moved:
                    request.gap_ps += gap_ps
                    request.moved = False
            self._fresh = []
        self._counter = counter + steps
        self._decoding = False
        finishes, counter = self._finishes, self._counter
        while finishes and finishes[0][0] == counter:
            turn = finishes[0][1]
            request = self.running[bisect_left(self.running, turn, key=_TURN)]
            self._leave_batch(request)
            self._give_back(-(-(request.kv_base + counter) // self._block_size))
            self._finish(request, now_ps)
        self.free_blocks += self._pending_blocks
        self._pending_blocks = 0

    def _end_prefill(self, now_ps: int) -> None:
        prefilled, self._prefilling = self._prefilling, []
        step_ps = now_ps - self._start_ps - self._cost.gap_ps
        self._report = self._view
        self._prefills += 1
        for request in prefilled:
            request.exec_ps += step_ps
            self._deliver_first(request, now_ps)
        self.free_blocks += self._pending_blocks
        self._pending_blocks = 0

    def _deliver_first(self, request: SimRequest, now_ps: int) -> None:
        """Deliver the token that the end of a prefill yields, and let the request decode."""
        request.generated += 1
        if request.first_token_ps is None:
            request.first_token_ps = now_ps
        else:
            request.max_gap_ps = max(request.max_gap_ps, now_ps - request.last_token_ps)
        if request.preempted_ps is not None:
            decode_ps = self._cost.decode_ps(8, request.tokens)
            request.preemption_loss_ps += max(0, now_ps - request.preempted_ps - decode_ps)
            request.preempted_ps = None
        if request.frozen_ps is not None:
            request.downtime_ps += now_ps - request.frozen_ps
            request.frozen_ps = None
        if request.moved:
            request.gap_ps += now_ps - request.last_token_ps
            request.moved = False
        request.last_token_ps = now_ps
        if request.generated >= request.output_tokens:
            self._give_back(-(-request.tokens // self._block_size))
            self._finish(request, now_ps)
        else:
            self._join_batch(request, request.tokens)

    def _schedule(self, now_ps: int) -> None:
        """Begin the next step or segment at `now_ps`, or become idle."""
        for request in self._joining:
            self._join_batch(request, request.tokens)
        self._joining.clear()
        if self._freezing is not None:
            self._freeze_now(now_ps)
        self._start_ps = now_ps
        if self._plan(now_ps):
            self._segment_free = self.free_blocks
            self._view = self._load(self._batch, self.free_blocks)
            self._view_steps = 0
            self._view_until_ps = -1
            self.version += 1
            self._arm(self.instance_id, self._end_ps, self.version)
        self._touch(self.instance_id, worse=self._worse)
        self._worse = bool(self._prefilling)  # what a prefill makes of the load is seen in the next segment

    @abstractmethod
    def _plan(self, now_ps: int) -> bool:
        """Begin the next step or segment; False if there is nothing to do."""

    def _give_back(self, blocks: int) -> None:
        """Free the blocks of a request that has ended."""
        self.free_blocks += blocks

    def _begin_decode(self, steps: int, now_ps: int) -> None:
        """Begin a segment of `steps` decode steps of the whole batch, between which nothing changes."""
        cost, batch = self._cost, len(self.running)
        self._batch = batch
        self._decoding = True
        self._steps = steps
        self._cut = steps == 1
        self._first_step_ps = cost.decode_ps(batch, self._kv_base_sum + batch * (self._counter + 1))
        if self.migrating:
            self._first_step_ps += cost.migration_step_ps
        self._step_growth_ps = cost.token_ps * batch
        self._end_ps = now_ps + self._elapsed_ps(steps)

    def _preempt(self, request: SimRequest, now_ps: int) -> None:
        """Take a decoding request out of the batch; its KV cache is to be computed again."""
        self._leave_batch(request)
        self.free_blocks += -(-(request.kv_base + self._counter) // self._block_size)
        request.tokens = request.prompt_tokens + request.generated
        self._queue_again(request, now_ps)

    def _queue_again(self, request: SimRequest, now_ps: int) -> None:
        if request.preempted_ps is None:  # else it has had no token since the last time
            request.preempted_ps = now_ps
        request.preemptions += 1
        self._worse = True
        self.preempted_waiting += 1
        self.waiting.insert(self._front_of_class(request), request)
        self.waiting_tokens += request.tokens
        self._on_preempted(request)

    def _front_of_class(self, request: SimRequest) -> int:
        """Return the place of a preempted request in the queue: first, but behind the high-priority ones."""
        if self._queue_order is not QueueOrder.front or request.priority is _HIGH:
            return 0
        return sum(r.priority is _HIGH for r in self.waiting) if self.high_priority else 0

    def _finish(self, request: SimRequest, now_ps: int) -> None:
        request.status = "finished"
        request.end_ps = now_ps
        if request.priority is _HIGH:
            self.high_priority -= 1
        self._on_finished(request)

    def _freeze_now(self, now_ps: int) -> None:
        request, self._freezing = self._freezing, None
        assert request is not None
        place = bisect_left(self.running, request.turn, key=_TURN)
        if place < len(self.running) and self.running[place] is request:
            self._leave_batch(request)
            request.tokens = request.kv_base + self._counter  # KV tokens it takes along
            if request.priority is _HIGH:
                self.high_priority -= 1
            self._on_frozen(request, now_ps)

    # --- the batch

    def _join_batch(self, request: SimRequest, kv_tokens: int) -> None:
        counter = self._counter
        request.kv_base = kv_tokens - counter
        request.join_step = counter
        request.finish_step = counter + request.output_tokens - request.generated
        request.exec_mark_ps = self._decode_ps
        self._kv_base_sum += request.kv_base
        self._residues[-request.kv_base % self._block_size] += 1
        insort(self._finishes, (request.finish_step, request.turn))
        if self.running and self.running[-1].turn > request.turn:
            insort(self.running, request, key=_TURN)
        else:
            self.running.append(request)
        self._fresh.append(request)

    def _leave_batch(self, request: SimRequest) -> None:
        counter = self._counter
        del self.running[bisect_left(self.running, request.turn, key=_TURN)]
        del self._finishes[bisect_left(self._finishes, (request.finish_step, request.turn))]
        self._kv_base_sum -= request.kv_base
        self._residues[-request.kv_base % self._block_size] -= 1
        steps = counter - request.join_step
        request.exec_ps += self._decode_ps - request.exec_mark_ps
        request.generated += steps
        if steps:
            request.last_token_ps = self._gaps.last_token_ps
            if steps > 1:
                request.max_gap_ps = max(request.max_gap_ps, self._gaps.longest_after(request.join_step + 1))
        else:
            self._fresh.remove(request)

    # --- closed forms of a segment

    def _elapsed_ps(self, steps: int) -> int:
        """Return the duration of the segment's first `steps` decode steps: an arithmetic series."""
        return steps * self._first_step_ps + self._step_growth_ps * (steps * (steps - 1) // 2)

    def _completed_before(self, now_ps: int) -> int:
        """Return how many of the segment's decode steps end strictly before `now_ps`: the series, inverted."""
        if now_ps <= self._view_until_ps:
            return self._view_steps
        elapsed = now_ps - self._start_ps
        first = self._first_step_ps
        if elapsed <= first:
            return 0
        growth = self._step_growth_ps
        linear = first - growth / 2
        steps = int(2 * elapsed / (linear + math.sqrt(linear * linear + 2 * growth * elapsed)))
        # the float estimate is off by one at most; integers settle it
        end = steps * first + growth * (steps * (steps - 1) // 2)
        while end >= elapsed:
            steps -= 1
            end -= first + growth * steps
        end += first + growth * steps
        while end < elapsed:
            steps += 1
            end += first + growth * steps
        return steps if steps < self._steps else self._steps

    def _block_demand(self, steps: int) -> int:
        """Return the blocks that the batch takes during the segment's first `steps` steps."""
        size = self._block_size
        rounds, rest = divmod(steps, size)
        demand = rounds * len(self.running)
        if rest:
            first = self._counter % size
            last = first + rest
            if last <= size:
                demand += sum(self._residues[first:last])
            else:
                demand += sum(self._residues[first:]) + sum(self._residues[: last - size])
        return demand

    def _steps_within(self, blocks: int) -> int:
        """Return the most steps that take no more than `blocks` blocks."""
        if blocks < 0:
            return 0
        size = self._block_size
        rounds, left = divmod(blocks, len(self.running))
        steps = rounds * size
        first = self._counter
        for step in range(size):
            left -= self._residues[(first + step) % size]
            if left < 0:
                return steps + step
        return steps + size

    # --- loads

    def _load(self, batch: int, free_blocks: int) -> InstanceLoad:
        waiting = self.waiting
        return InstanceLoad(
            self.instance_id,
            batch,
            len(waiting),
            self.preempted_waiting,
            self.high_priority,
            free_blocks,
            self.total_blocks,
            self.watermark_blocks,
            self._block_size,
            self.waiting_tokens,
            waiting[0].tokens if waiting else 0,
            self.draining,
        )

    def _present_free(self, now_ps: int) -> int:
        free = self.free_blocks + self._pending_blocks
        if self._decoding:
            free -= self._block_demand(min(self._completed_before(now_ps) + 1, self._steps))
        return free

    def _change_free(self, blocks: int, now_ps: int) -> None:
        if self.busy:
            self._pending_blocks += blocks
        else:
            self.free_blocks += blocks
        self._wake(now_ps)
