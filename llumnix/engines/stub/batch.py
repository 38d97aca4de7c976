"""Iteration-level scheduling of one instance, token by token and block by block, as an engine has to do it.

The rules are those of vLLM 0.1.x, which llumnix.engines.sim follows in closed form; this is the program whose running
time is measured, so it keeps block tables and tokens as lists and touches every request in every iteration. A test
holds the two against each other. It knows no model and no clock, and neither priorities nor migration.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from llumnix.cluster.spec import ClusterSpec
from llumnix.load import InstanceLoad


class Row(NamedTuple):
    """One request of a step: KV tokens before it, new tokens in it, and where its KV cache lies."""

    request_id: int
    context_tokens: int
    new_tokens: int
    blocks: list[int]


class Plan(NamedTuple):
    """The next step of an instance: a prefill of whole prompts, or one token for each row."""

    prefill: bool
    rows: list[Row]


class Sequence:
    """A request at an instance; request ids rise in order of arrival."""

    __slots__ = ("blocks", "output_tokens", "preempted", "prompt_tokens", "request_id", "tokens")

    def __init__(self, request_id: int, prompt_tokens: int, output_tokens: int) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.tokens: list[int] = []
        self.blocks: list[int] = []
        self.preempted = False

    @property
    def length(self) -> int:
        """Tokens that a prefill has to process."""
        return self.prompt_tokens + len(self.tokens)


def _by_arrival(sequence: Sequence) -> int:
    return sequence.request_id


class BatchScheduler:
    """Queue, batch and block tables of one instance."""

    def __init__(self, instance_id: int, spec: ClusterSpec, total_blocks: int) -> None:
        self._instance_id = instance_id
        self._spec = spec
        self._total_blocks = total_blocks
        self._watermark_blocks = int(spec.watermark_fraction * total_blocks)
        self._free = list(range(total_blocks))
        self._waiting: deque[Sequence] = deque()
        self._waiting_tokens = 0
        self._preempted = 0
        self._running: list[Sequence] = []
        self._in_step: dict[int, Sequence] = {}

    def add(self, request_id: int, prompt_tokens: int, output_tokens: int) -> None:
        """Queue a new request."""
        self._waiting.append(Sequence(request_id, prompt_tokens, output_tokens))
        self._waiting_tokens += prompt_tokens

    def next_step(self, outputs: Iterable[tuple[int, int]]) -> Plan | None:
        """Take the (request, token) pairs of the step that has ended and plan the next one, None if there is none."""
        for request_id, token in outputs:
            sequence = self._in_step[request_id]
            sequence.tokens.append(token)
            if len(sequence.tokens) == sequence.output_tokens:
                self._running.remove(sequence)
                self._release(sequence)
        plan = self._prefill() or self._decode()
        self._in_step = {} if plan is None else {row.request_id: self._in_step[row.request_id] for row in plan.rows}
        return plan

    def load(self) -> InstanceLoad:
        """Report what is running, waiting and free."""
        waiting = self._waiting
        return InstanceLoad(
            self._instance_id,
            len(self._running),
            len(waiting),
            self._preempted,
            0,
            len(self._free),
            self._total_blocks,
            self._watermark_blocks,
            self._spec.block_size_tokens,
            self._waiting_tokens,
            waiting[0].length if waiting else 0,
        )

    def _prefill(self) -> Plan | None:
        """Admit from the head of the queue while memory, token budget and seats allow."""
        rows: list[Row] = []
        tokens = 0
        while self._waiting and len(self._running) < self._spec.max_num_seqs:
            sequence = self._waiting[0]
            length = sequence.length
            blocks = -(-length // self._spec.block_size_tokens)
            if len(self._free) - blocks < self._watermark_blocks:
                break
            if rows and tokens + length > self._spec.max_num_batched_tokens:
                break
            self._waiting.popleft()
            self._waiting_tokens -= length
            self._preempted -= sequence.preempted
            sequence.blocks = [self._free.pop() for _ in range(blocks)]
            tokens += length
            insort(self._running, sequence, key=_by_arrival)
            self._in_step[sequence.request_id] = sequence
            rows.append(Row(sequence.request_id, 0, length, sequence.blocks))
        return Plan(True, rows) if rows else None

    def _decode(self) -> Plan | None:
        """One token for each request; where no block is free at a request's turn the youngest is preempted."""
        rows: list[Row] = []
        turn = 0
        while turn < len(self._running):
            sequence = self._running[turn]
            while not self._free and len(self._running) > turn:
                self._preempt(self._running[-1])
            if len(self._running) == turn:
                break
            in_cache = sequence.length - 1  # the newest token is written by this step
            if in_cache % self._spec.block_size_tokens == 0:
                sequence.blocks.append(self._free.pop())
            self._in_step[sequence.request_id] = sequence
            rows.append(Row(sequence.request_id, in_cache, 1, sequence.blocks))
            turn += 1
        return Plan(False, rows) if rows else None

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        self._preempted += 1
        sequence.preempted = True
        self._waiting.appendleft(sequence)
        self._waiting_tokens += sequence.length

    def _release(self, sequence: Sequence) -> None:
        self._free.extend(sequence.blocks)
        sequence.blocks = []
