"""The slow instance for batching=chunked: every step, every token, every block with its number and its contents.

Written from the rules of vLLM V1: one token budget, running requests before waiting ones, chunks of prompts, memory for
all of a request before it is admitted, blocks per chunk, the last one preempted and nobody admitted then, freed blocks
used again in the order in which they were freed and found again until then, and plans that are made a step ahead.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from reference import ReferenceInstance

from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.instance import Segment
from llumnix.engines.sim.request import SimRequest
from llumnix.engines.sim.spec import SimEngine
from llumnix.policies.spec import QueueOrder
from llumnix.request import Priority


class ReferenceChunked(ReferenceInstance):
    """Continuous batching with chunked prefill, step by step. `running` holds prompts under way, too, as in vLLM."""

    def __init__(
        self, instance_id: int, spec: ClusterSpec, engine: SimEngine, total_blocks: int, *rest: Any, **hooks: Any
    ) -> None:
        super().__init__(instance_id, spec, engine, total_blocks, *rest, **hooks)
        self._engine = engine
        self._queue: OrderedDict[int, None] = OrderedDict.fromkeys(range(total_blocks))  # free blocks, next one first
        self._content: dict[int, tuple[SimRequest, int]] = {}  # block: whose, and which of that request's
        self._tables: dict[SimRequest, list[int]] = {}
        self._reserved: list[int] = []
        self._prompts: list[SimRequest] = []  # running, and have no token of this stay yet
        self._computing: dict[SimRequest, int] = {}  # tokens of the step under way
        self._plans = 0
        self._seen_by: dict[SimRequest, int] = {}  # number of the first plan that can take it in
        self._ended: list[list[int]] = []  # tables of requests that have ended, but for the plan to come

    # --- blocks

    def _take(self, blocks: int) -> list[int]:
        taken = [self._queue.popitem(last=False)[0] for _ in range(blocks)]
        for block in taken:
            self._content.pop(block, None)
        self.free_blocks = len(self._queue)
        return taken

    def _free(self, blocks: list[int]) -> None:
        self._queue.update(dict.fromkeys(reversed(blocks)))
        self.free_blocks = len(self._queue)

    def _find(self, request: SimRequest) -> list[int]:
        """Take the blocks out of the queue that still hold the beginning of the request, at most all but one token."""
        where = {self._content[block]: block for block in self._queue if block in self._content}
        found: list[int] = []
        while (request, len(found)) in where and (len(found) + 1) * self._spec.block_size_tokens < request.tokens:
            found.append(where[request, len(found)])
        for block in found:
            del self._queue[block], self._content[block]  # only what a preemption leaves is looked for
        self.free_blocks = len(self._queue)
        return found

    def _forget(self, request: SimRequest) -> list[int]:
        del self._kv_tokens[request], self._held_blocks[request]
        return self._tables.pop(request)

    # --- the public face, where it differs

    @property
    def busy(self) -> bool:
        return bool(self._computing)

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        return self._blocks(prompt_tokens + output_tokens - 1) <= self.total_blocks

    def enqueue(self, request: SimRequest, now_ps: int) -> None:
        if self.busy and self._engine.async_scheduling:
            self._seen_by[request] = self._plans + 2
        super().enqueue(request, now_ps)

    def reserve(self, blocks: int, now_ps: int, *, seat: bool) -> bool:
        if self.free_blocks - blocks < self.watermark_blocks:
            return False
        if seat and len(self.running) + len(self._joining) + self.inbound + 1 > self._spec.max_num_seqs:
            return False
        self.inbound += seat
        self._reserved += self._take(blocks)
        self._reserved_blocks += blocks
        self._changed(now_ps)
        return True

    def cancel(self, blocks: int, now_ps: int) -> None:
        assert len(self._reserved) == blocks
        self._free(self._reserved)
        self._reserved = []
        self.free_blocks -= blocks  # which super() counts
        super().cancel(blocks, now_ps)

    def release(self, blocks: int, now_ps: int) -> None:
        assert self._frozen is not None
        self._free(self._tables.pop(self._frozen))
        self.free_blocks -= blocks  # which super() counts
        super().release(blocks, now_ps)

    def join(self, request: SimRequest, now_ps: int, *, inbound: bool) -> None:
        if inbound:
            self._tables[request], self._reserved = self._reserved, []
        super().join(request, now_ps, inbound=inbound)

    def movable(self) -> list[SimRequest]:
        return [r for r in super().movable() if r not in self._prompts]

    def segment(self) -> Segment:
        return Segment(self._step_start_ps, 1, len(self._computing), sum(self._computing.values()))

    # --- steps

    def boundary(self, now_ps: int) -> None:
        exec_ps = now_ps - self._step_start_ps - self._cost.gap_ps
        self._report = self._step_report
        self._steps += 1
        computed, self._computing = self._computing, {}
        for request in computed:
            request.exec_ps += exec_ps
            if self._kv_tokens[request] == request.prompt_tokens + request.generated:
                if request in self._prompts:
                    self._prompts.remove(request)
                self._deliver_token(request, now_ps)
        self._begin_step(now_ps)

    def _give_back(self, request: SimRequest) -> None:
        self._ended.append(self._forget(request))
        if not self._engine.async_scheduling:
            self._settle()

    def _settle(self) -> None:
        for table in self._ended:
            self._free(table)
        self._ended = []

    def _begin_step(self, now_ps: int) -> None:
        decoding = [r for r in self.running if r not in self._prompts]
        self.running = [*decoding, *self._joining, *(r for r in self.running if r in self._prompts)]
        self._joining = []
        if self._freezing in self.running and self._freezing not in self._prompts:
            self._frozen = self._freezing
            self.running.remove(self._frozen)
            self._frozen.tokens = self._kv_tokens[self._frozen]
            self._on_frozen(self._frozen, now_ps)
        self._freezing = None

        self._plan(now_ps)
        self._settle()
        if not self._computing:  # nothing is under way for which the next plan would have to wait
            self._plan(now_ps)
        held = sum(map(len, self._tables.values()))
        assert len(self._queue) + self._reserved_blocks + held == self.total_blocks
        assert held == sum(self._held_blocks.values())
        assert self.free_blocks == len(self._queue)
        if self._computing:
            duration_ps = self._duration_ps()
            if self.migrating:
                duration_ps += self._cost.migration_step_ps
            self._step_start_ps = now_ps
            self._step_report = self._load()
            self.version += 1
            self._arm(self.instance_id, now_ps + duration_ps, self.version)
        self._touch(self.instance_id)

    def _duration_ps(self) -> int:
        ends = {request: self._kv_tokens[request] for request in self._computing}
        chunks = [(ends[r] - tokens, ends[r]) for r, tokens in self._computing.items() if r in self._prompts]
        decodes = [ends[r] for r in self._computing if r not in self._prompts]
        assert all(tokens == 1 for r, tokens in self._computing.items() if r not in self._prompts)
        if not chunks:
            return self._cost.decode_ps(len(decodes), sum(decodes))
        work = (
            len(chunks),
            sum(end - start for start, end in chunks),
            sum(end**2 - start**2 for start, end in chunks),
            sum(start for start, _ in chunks),
        )
        if not decodes:
            return self._cost.prefill_ps(*work)
        return self._cost.mixed_ps(len(decodes), sum(decodes), *work)

    # --- the plan

    def _plan(self, now_ps: int) -> None:
        self._plans += 1
        preempted, place = False, 0
        while place < len(self.running):
            request = self.running[place]
            tokens = min(request.prompt_tokens + request.generated - self._kv_tokens[request], self._budget())
            while self._missing(request, tokens) > len(self._queue):
                victim = self._victim()
                preempted = True
                if victim in self._computing:
                    self._kv_tokens[victim] -= self._computing.pop(victim)
                    place -= 1
                self._preempt(victim, now_ps)
                if victim is request:
                    break
            else:
                self._compute(request, tokens)
                place += 1
        if not preempted:
            self._admit()

    def _admit(self) -> None:
        seen = [r for r in self.waiting if self._seen_by.get(r, 0) <= self._plans]
        for request in seen:
            seats = self._spec.max_num_seqs - self.inbound - len(self._ended)
            if self._budget() == 0 or len(self.running) >= seats:
                break
            if self._blocks(request.tokens) + (self.watermark_blocks if self.running else 0) > len(self._queue):
                break
            self.waiting.remove(request)
            self._tables[request] = self._find(request)
            self._kv_tokens[request] = len(self._tables[request]) * self._spec.block_size_tokens
            self.running.append(request)
            self._prompts.append(request)
            self._compute(request, min(request.tokens - self._kv_tokens[request], self._budget()))

    def _budget(self) -> int:
        return self._spec.max_num_batched_tokens - sum(self._computing.values())

    def _missing(self, request: SimRequest, tokens: int) -> int:
        return self._blocks(self._kv_tokens[request] + tokens) - len(self._tables[request])

    def _compute(self, request: SimRequest, tokens: int) -> None:
        """Have the step compute so many tokens more of the request, into blocks that are there."""
        self._tables[request] += self._take(self._missing(request, tokens))
        self._kv_tokens[request] += tokens
        self._held_blocks[request] = len(self._tables[request])
        self._computing[request] = tokens

    def _victim(self) -> SimRequest:
        if self._queue_order is not QueueOrder.front:
            return self.running[-1]
        low = [r for r in self.running if r.priority is Priority.NORMAL] or self.running
        return max(low, key=lambda r: r.arrival_order)

    def _preempt(self, request: SimRequest, now_ps: int) -> None:
        self.running.remove(request)
        if request in self._prompts:
            self._prompts.remove(request)
        full_blocks = self._kv_tokens[request] // self._spec.block_size_tokens
        table = self._forget(request)
        if self._engine.prefix_caching:
            self._content |= {block: (request, place) for place, block in enumerate(table[:full_blocks])}
        self._free(table)
        request.tokens = request.prompt_tokens + request.generated
        request.preempted_ps = now_ps if request.preempted_ps is None else request.preempted_ps
        request.preemptions += 1
        behind_high = self._queue_order is QueueOrder.front and request.priority is Priority.NORMAL
        self.waiting.insert(self._normal_from() if behind_high else 0, request)
        self._on_preempted(request)
