"""Batching of vLLM 0.1.x, which the paper was measured on.

Prompts before decodes and never in one step with them; admission in queue order while memory above the watermark, the
token budget and the sequence limit allow; a decode step needs one free block at each request's turn, in order of
arrival, and preempts the youngest by recomputation where there is none.
"""

from __future__ import annotations

from llumnix.engines.sim.instance import SimInstance


class PrefillFirstInstance(SimInstance):
    """An instance whose steps are either prefills or decodes."""

    __slots__ = ()

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Tell whether a request can ever finish here, alone if need be."""
        most_tokens = prompt_tokens + max(output_tokens, 1) - 1
        blocks = -(-most_tokens // self._block_size)
        return prompt_tokens <= self._max_num_batched_tokens and blocks + self.watermark_blocks < self.total_blocks

    def _plan(self, now_ps: int) -> bool:
        return bool(
            (self.waiting and self._admit(now_ps))
            or (self.running and self._plan_decode(now_ps))
            or (self.waiting and self._admit(now_ps))  # planning preempted the whole batch
        )

    def _admit(self, now_ps: int) -> bool:
        """Start a prefill step with as much of the queue as fits."""
        waiting, admitted = self.waiting, self._prefilling
        tokens = squares = 0
        seats = self._max_num_seqs - len(self.running) - self.inbound
        while waiting and len(admitted) < seats:
            request = waiting[0]
            length = request.tokens
            blocks = -(-length // self._block_size)
            if self.free_blocks - blocks < self.watermark_blocks:
                break
            if admitted and tokens + length > self._max_num_batched_tokens:
                break
            waiting.popleft()
            self.waiting_tokens -= length
            self.free_blocks -= blocks
            if request.preempted_ps is not None:
                self.preempted_waiting -= 1
            tokens += length
            squares += length * length
            admitted.append(request)
        if not admitted:
            return False
        self._worse = True
        duration_ps = self._cost.prefill_ps(len(admitted), tokens, squares)
        if self.migrating:
            duration_ps += self._cost.migration_step_ps
        self._batch = len(self.running) + len(admitted)
        self._end_ps = now_ps + duration_ps
        return True

    def _plan_decode(self, now_ps: int) -> bool:
        """Start as many decode steps as nothing can interrupt: up to the next completion or lack of blocks."""
        batch = len(self.running)
        steps = self._finishes[0][0] - self._counter
        if batch * -(-steps // self._block_size) >= self.free_blocks:
            steps = min(steps, self._steps_within(self.free_blocks - 1))
            if steps == 0:
                self._preempt_for_one_step(now_ps)
                if not self.running:
                    return False
                steps = 1
        self._begin_decode(steps, now_ps)
        return True

    def _preempt_for_one_step(self, now_ps: int) -> None:
        """Give each request its turn in order of arrival; where no block is free, preempt from the youngest on."""
        free, counter, size = self.free_blocks, self._counter, self._block_size
        turn = 0
        while turn < len(self.running):
            request = self.running[turn]
            while free < 1 and len(self.running) > turn:
                victim = self.running[-1]
                free += -(-(victim.kv_base + counter) // size)
                self._preempt(victim, now_ps)
            if len(self.running) == turn:
                break
            free -= (request.kv_base + counter) % size == 0
            turn += 1
