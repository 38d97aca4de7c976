"""Batching of vLLM V1: one token budget a step, which decodes and chunks of prompts share.

Decodes come first, then the prompt that is under way, then new ones in queue order: a prompt is computed as far as the
budget goes, and a step that ends one yields its first token. A request is admitted where the blocks of all its tokens
are free, and takes those of its chunk. A running request that finds no block preempts the last one, or with priorities
the youngest of the lowest class, and then nobody is admitted in that step. A preempted request begins again behind what
is left of its blocks (llumnix.engines.sim.kept).

With asynchronous scheduling vLLM plans a step when the one before it begins. So a plan does not know who has come since
then, and has not got the memory and the places of those who have ended meanwhile; the next one does.

As long as only decodes run, all that llumnix.engines.sim.instance says of segments holds; a step with a chunk is a
segment of its own.
"""

from __future__ import annotations

from llumnix.engines.sim.instance import Segment, SimInstance
from llumnix.engines.sim.kept import KeptBlocks
from llumnix.engines.sim.request import SimRequest
from llumnix.engines.sim.spec import SimEngine
from llumnix.errors import ConfigError
from llumnix.policies.spec import QueueOrder
from llumnix.request import Priority

_HIGH = Priority.HIGH


class ChunkedInstance(SimInstance):
    """An instance whose steps mix decodes and chunks of prompts. A step leaves at most one prompt unfinished."""

    __slots__ = (
        "_asynchronous",
        "_chunk_tokens",
        "_ended",
        "_ended_blocks",
        "_kept",
        "_next_turn",
        "_prefix_caching",
        "_unseen",
    )

    def _prepare(self, engine: SimEngine) -> None:
        if self._max_num_batched_tokens <= self._max_num_seqs:
            raise ConfigError(
                f"With engine.batching=chunked every running request takes a token of each step: "
                f"cluster.max_num_batched_tokens={self._max_num_batched_tokens} must be more than "
                f"cluster.max_num_seqs={self._max_num_seqs}."
            )
        self._asynchronous = engine.async_scheduling
        self._prefix_caching = engine.prefix_caching
        self._kept = KeptBlocks(self.total_blocks)
        self._next_turn = 0
        self._chunk_tokens = 0  # of all prompts in the step under way
        self._unseen: list[SimRequest] = []  # have come since the step to come was planned
        self._ended = 0  # requests that have ended since then ...
        self._ended_blocks = 0  # ... and what they held

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Tell whether a request can ever finish here, alone if need be."""
        return self._blocks(prompt_tokens + max(output_tokens, 1) - 1) <= self.total_blocks

    def enqueue(self, request: SimRequest, now_ps: int) -> None:
        """Accept a new request."""
        request.computed_tokens = 0
        if self._asynchronous and self.busy:
            self._unseen.append(request)
        super().enqueue(request, now_ps)

    def segment(self) -> Segment:
        """Return what is under way."""
        return Segment(self._start_ps, self._steps, self._batch, len(self.running) + self._chunk_tokens)

    # --- the end of a step

    def _end_prefill(self, now_ps: int) -> None:
        prompts = self._prefilling
        step_ps = now_ps - self._start_ps - self._cost.gap_ps
        self._report = self._view
        self._prefills += self._batch == len(prompts)  # a step with decodes has been counted
        self._prefilling = [r for r in prompts if r.computed_tokens < r.tokens]
        for request in prompts:
            request.exec_ps += step_ps
            if request.computed_tokens == request.tokens:
                self._deliver_first(request, now_ps)
        self.free_blocks += self._pending_blocks
        self._pending_blocks = 0

    def _give_back(self, blocks: int) -> None:
        self._ended += 1
        self._ended_blocks += blocks
        if not self._asynchronous:
            self._settle()

    def _settle(self) -> None:
        """Let the next plan know what has happened since the last one was made."""
        self._unseen.clear()
        self._kept.give(self._ended_blocks)
        self.free_blocks += self._ended_blocks
        self._ended = self._ended_blocks = 0

    # --- the plan of a step

    def _plan(self, now_ps: int) -> bool:
        planned = self._plan_step(now_ps)
        self._settle()
        # With nothing under way the next plan is made at once.
        return planned or (bool(self.waiting) and self._plan_step(now_ps))

    def _plan_step(self, now_ps: int) -> bool:
        first_preempted = self.preempted_waiting
        self._make_room(now_ps)
        chunks = self._continue_prompt(now_ps)
        preempted = self.preempted_waiting > first_preempted
        if self.waiting and not preempted:
            chunks += self._admit(self._max_num_batched_tokens - len(self.running) - sum(c for _, c in chunks))
        self._chunk_tokens = 0
        if chunks:
            self._begin_chunks(chunks, now_ps)
            return True
        if not self.running:
            return False
        steps: int = self._finishes[0][0] - self._counter
        if preempted or (self.waiting and (self._unseen or self._ended)):
            steps = 1  # the next plan may admit
        elif len(self.running) * -(-steps // self._block_size) > self.free_blocks:
            steps = min(steps, self._steps_within(self.free_blocks))
        self._begin_decode(steps, now_ps)
        return True

    def _make_room(self, now_ps: int) -> None:
        """Give each decoding request its turn for the block that its next token may need."""
        if self._block_demand(1) <= self.free_blocks:
            return
        free, turn = self.free_blocks, 0
        while turn < len(self.running):
            request = self.running[turn]
            needed = self._next_block(request)
            while free < needed:
                victim = self._victim()
                served = victim.turn < request.turn and victim in self.running
                turn -= served
                free += self._preempt_any(victim, now_ps, served=served)
                if victim is request:
                    break
            else:
                free -= needed
                turn += 1

    def _continue_prompt(self, now_ps: int) -> list[tuple[SimRequest, int]]:
        """Return the next chunk of the prompt that the last step has left unfinished, its blocks taken."""
        for request in self._prefilling:
            chunk = min(request.tokens - request.computed_tokens, self._max_num_batched_tokens - len(self.running))
            blocks = self._blocks(request.computed_tokens + chunk) - self._blocks(request.computed_tokens)
            while blocks > self.free_blocks - self._block_demand(1):
                victim = self._victim()
                self._preempt_any(victim, now_ps, served=victim is not request)
                if victim is request:
                    return []
            self.free_blocks -= blocks
            return [(request, chunk)]
        return []

    def _admit(self, budget_tokens: int) -> list[tuple[SimRequest, int]]:
        """Return the first chunks of the requests from the queue that fit in, their blocks taken."""
        waiting, admitted = self.waiting, []
        demand = self._block_demand(1)
        seats = self._max_num_seqs - len(self.running) - len(self._prefilling) - self.inbound - self._ended
        place = 0
        while place < len(waiting) and seats > 0 and budget_tokens > 0:
            request = waiting[place]
            if request in self._unseen:
                place += 1
                continue
            free = self.free_blocks - demand
            watermark = self.watermark_blocks if self.running or self._prefilling else 0
            if self._blocks(request.tokens) + watermark > free:
                break
            del waiting[place]
            self.waiting_tokens -= request.tokens
            if request.preempted_ps is not None:
                self.preempted_waiting -= 1
            left = min(self._kept.left(request, free), (request.tokens - 1) // self._block_size)
            self._kept.find(request, left)
            request.computed_tokens = left * self._block_size
            chunk = min(request.tokens - request.computed_tokens, budget_tokens)
            self.free_blocks -= self._blocks(request.computed_tokens + chunk)
            self._prefilling.append(request)
            admitted.append((request, chunk))
            budget_tokens -= chunk
            seats -= 1
        return admitted

    def _begin_chunks(self, chunks: list[tuple[SimRequest, int]], now_ps: int) -> None:
        """Begin a step of these chunks and one decode of the whole batch."""
        tokens = squares = context = 0
        for request, chunk in chunks:
            start = request.computed_tokens
            request.computed_tokens = end = start + chunk
            tokens += chunk
            squares += end * end - start * start
            context += start
        self._worse = True
        self._chunk_tokens = tokens
        if self.running:
            self._begin_decode(1, now_ps)
            decodes = len(self.running)
            decode_tokens = self._kv_base_sum + decodes * (self._counter + 1)
            duration_ps = self._cost.mixed_ps(decodes, decode_tokens, len(chunks), tokens, squares, context)
        else:
            duration_ps = self._cost.prefill_ps(len(chunks), tokens, squares, context)
        if self.migrating:
            duration_ps += self._cost.migration_step_ps
        self._steps = 1
        self._batch = len(self.running) + len(chunks)
        self._first_step_ps = duration_ps
        self._end_ps = now_ps + duration_ps

    # --- preemption

    def _victim(self) -> SimRequest:
        """Return who has to give way: the last to be admitted, or with priorities the youngest of the lowest class."""
        if self._queue_order is QueueOrder.front:
            return max([*self.running, *self._prefilling], key=lambda r: (r.priority is not _HIGH, r.arrival_order))
        return self._prefilling[-1] if self._prefilling else self.running[-1]

    def _preempt_any(self, request: SimRequest, now_ps: int, *, served: bool) -> int:
        """Preempt a request, whether it decodes or its prompt is under way; return how many blocks that frees.

        `served`: it has had its turn in this plan, and with it the block that its next token needs.
        """
        next_block = self._next_block(request) if served else 0
        self._kept.give(next_block)  # taken from the head of the queue, and put to its end
        if request in self._prefilling:
            self._prefilling.remove(request)
            computed = request.computed_tokens
            self.free_blocks += self._blocks(computed)
            self._queue_again(request, now_ps)
        else:
            computed = request.kv_base + self._counter
            self._preempt(request, now_ps)
        blocks = self._blocks(computed)
        if self._prefix_caching:
            self._kept.keep(request, blocks, computed, self._block_size)
        else:
            self._kept.give(blocks)
        return blocks + next_block

    # --- blocks

    def _join_batch(self, request: SimRequest, kv_tokens: int) -> None:
        request.turn = self._next_turn
        self._next_turn += 1
        super()._join_batch(request, kv_tokens)

    def _change_free(self, blocks: int, now_ps: int) -> None:
        if blocks > 0:
            self._kept.give(blocks)
        super()._change_free(blocks, now_ps)

    def _next_block(self, request: SimRequest) -> int:
        """Return how many blocks the next token of a decoding request needs, 0 or 1."""
        return (request.kv_base + self._counter) % self._block_size == 0

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_size)
