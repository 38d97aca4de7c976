"""A small deterministic engine behind the Engine protocol: a token is a hash of all KV entries that it can see.

A block that is missing, misplaced or stale therefore changes the tokens, and a moved request must give exactly the
tokens of one that stayed. Faults are injected by setting attributes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from llumnix.engines.base import (
    Departure,
    EngineRequest,
    FinalState,
    KvIdentity,
    MigrationRefused,
    MovableRequest,
    Output,
    Parcel,
    Ready,
    StepResult,
)
from llumnix.load import InstanceLoad
from llumnix.migration import AbortReason
from llumnix.request import Priority

BLOCK_TOKENS = 4


def next_token(seen: Sequence[int]) -> int:
    """Return the token that follows these."""
    return int.from_bytes(hashlib.blake2b(repr(list(seen)).encode(), digest_size=4).digest(), "big") % 1000


def expected_tokens(prompt: Sequence[int], count: int) -> list[int]:
    """Return what a request must give, wherever it runs."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


@dataclass
class FakeRequest:
    """A request here; `computed` tokens have KV in `table`."""

    request: EngineRequest
    generated: list[int] = field(default_factory=list)
    table: list[int] = field(default_factory=list)
    computed: int = 0
    leaving: bool = False
    freezing: bool = False
    frozen: bool = False
    off: AbortReason | None = None

    @property
    def tokens(self) -> list[int]:
        return [*self.request.prompt, *self.generated]

    @property
    def order(self) -> tuple[int, int]:
        return (-self.request.priority, self.request.arrival_order)


class FakeEngine:
    """See llumnix.engines.base.Engine."""

    block_size_tokens = BLOCK_TOKENS
    block_bytes = 1
    carriers = ("inline",)

    def __init__(
        self, blocks: int = 64, max_running: int = 16, step_s: float = 0.001, *, steps_ahead: bool = False
    ) -> None:
        self.steps_ahead = steps_ahead  # a request that is frozen or preempted is in one more step
        self.step_s = step_s
        self.max_running = max_running
        self.migration_unsupported: str | None = None
        self.refuse_reason: str | None = None
        self.refuse_extend = False
        self.hang_s = 0.0
        self.fail_steps = False
        self.corrupt_writes = False
        self.total = blocks
        self.memory: list[list[int]] = [[] for _ in range(blocks)]
        self.free = list(range(blocks))
        self.running: list[FakeRequest] = []
        self.waiting: list[FakeRequest] = []
        self.arriving: dict[str, FakeRequest] = {}
        self.preempted_ids: set[str] = set()

    # --- serving

    def add(self, request: EngineRequest, generated: Sequence[int] = ()) -> None:
        tokens = len(request.prompt) + int(request.sampling["max_tokens"])
        if -(-tokens // BLOCK_TOKENS) > self.total:
            raise ValueError(f"request {request.request_id} needs {tokens} tokens, more than the engine has")
        self.waiting.append(FakeRequest(request, list(generated)))

    def abort(self, request_id: str) -> None:
        self.cancel(request_id)
        for item in self._find(request_id):
            self._remove(item, AbortReason.finished)

    def has_work(self) -> bool:
        return bool(self.waiting) or any(not item.frozen for item in self.running)

    def step(self) -> StepResult:
        if self.fail_steps:
            raise RuntimeError("the device is gone")
        time.sleep(self.hang_s or self.step_s)
        result = StepResult()
        self._admit()
        for item in sorted((r for r in self.running if not r.frozen), key=lambda r: r.order):
            if item in self.running and self._make_room(item, result):
                self._decode(item, result)
        for item in [*self.running, *self.waiting]:
            item.frozen, item.freezing = item.frozen or item.freezing, False
        return result

    def load(self, instance_id: int, *, draining: bool) -> InstanceLoad:
        waiting = sorted(self.waiting, key=lambda r: r.order)
        tokens = [len(item.tokens) for item in waiting]
        return InstanceLoad(
            instance_id=instance_id,
            running=len(self.running),
            waiting=len(waiting),
            preempted=len(self.preempted_ids),
            high_priority=sum(r.request.priority is Priority.HIGH for r in [*self.running, *waiting]),
            free_blocks=len(self.free),
            total_blocks=self.total,
            watermark_blocks=0,
            block_size_tokens=BLOCK_TOKENS,
            waiting_tokens=sum(tokens),
            head_tokens=tokens[0] if tokens else 0,
            draining=draining,
        )

    def forget_prefixes(self) -> None:
        pass

    def shutdown(self) -> None:
        pass

    # --- migration, source

    def movable(self) -> list[MovableRequest]:
        return [self._movable(r) for r in self.running if r.generated and not r.leaving]

    def queued(self) -> list[MovableRequest]:
        return [self._movable(r) for r in self.waiting if not r.leaving]

    def refusal(self, request_id: str) -> str | None:
        found = self._find(request_id)
        if not found:
            return "it is not here"
        return "it is moving already" if found[0].leaving else found[0].request.sampling.get("refuse")

    def depart(self, request_id: str) -> Departure:
        if (reason := self.refusal(request_id)) is not None:
            raise MigrationRefused(reason)
        (item,) = self._find(request_id)
        item.leaving, item.off = True, None
        self.departed = item
        identity = KvIdentity("fake", "", "", BLOCK_TOKENS, (), 1, 0)
        return Departure(item.request, tuple(item.generated), item.computed, identity)

    def held_blocks(self, request_id: str) -> int | AbortReason:
        if self.departed.off is not None:
            return self.departed.off
        return self.departed.computed // BLOCK_TOKENS + 1 if self.departed.table else 0

    def read_blocks(self, request_id: str, first_block: int, blocks: int, carrier: str) -> list[Parcel]:
        assert carrier in self.carriers
        (item,) = self._find(request_id)
        written = -(-item.computed // BLOCK_TOKENS)
        table = item.table[first_block : min(first_block + blocks, written)]
        return [Parcel(carrier, len(table), [list(self.memory[block]) for block in table])] if table else []

    def freeze(self, request_id: str) -> None:
        for item in self._find(request_id):
            item.freezing, item.frozen = self.steps_ahead, not self.steps_ahead

    def frozen_blocks(self, request_id: str) -> int | AbortReason | None:
        if self.departed.off is not None:
            return self.departed.off
        if self.departed.freezing:
            return None
        return -(-self.departed.computed // BLOCK_TOKENS)

    def final_state(self, request_id: str) -> FinalState:
        (item,) = self._find(request_id)
        return FinalState(request_id, tuple(item.generated), item.computed)

    def thaw(self, request_id: str) -> bool:
        for item in self._find(request_id):
            item.leaving = item.freezing = item.frozen = False
            return True
        return False

    def release(self, request_id: str) -> bool:
        found = self._find(request_id)
        for item in found:
            self._remove(item, AbortReason.finished)
        return bool(found)

    # --- migration, destination

    def reserve(self, departure: Departure, blocks: int) -> int:
        if self.refuse_reason is not None:
            raise MigrationRefused(self.refuse_reason)
        if blocks > len(self.free):
            raise MigrationRefused("there is no room")
        item = FakeRequest(departure.request, list(departure.generated), self._take(blocks))
        self.arriving[departure.request.request_id] = item
        return 0

    def extend(self, request_id: str, blocks: int) -> bool:
        if self.refuse_extend or blocks > len(self.free):
            return False
        self.arriving[request_id].table += self._take(blocks)
        return True

    def expect(self, request_id: str) -> None:
        assert request_id in self.arriving

    def carriers_from(self, departure: Departure) -> tuple[str, ...]:
        return self.carriers

    def write_blocks(self, request_id: str, first_block: int, parcels: Sequence[Parcel]) -> Ready:
        table = self.arriving[request_id].table
        for parcel in parcels:
            for index, content in enumerate(parcel.content):
                self.memory[table[first_block + index]] = [-1] if self.corrupt_writes else list(content)
        return lambda: None

    def commit(self, final: FinalState) -> None:
        item = self.arriving.pop(final.request_id)
        item.generated, item.computed = list(final.generated), final.computed_tokens
        (self.running if item.computed else self.waiting).append(item)

    def cancel(self, request_id: str) -> None:
        item = self.arriving.pop(request_id, None)
        if item is not None:
            self.free += item.table

    # --- inside

    def _find(self, request_id: str) -> list[FakeRequest]:
        return [r for r in [*self.running, *self.waiting] if r.request.request_id == request_id]

    def _movable(self, item: FakeRequest) -> MovableRequest:
        request = item.request
        return MovableRequest(request.request_id, request.priority, request.arrival_order, len(item.tokens))

    def _take(self, blocks: int) -> list[int]:
        taken, self.free = self.free[:blocks], self.free[blocks:]
        for block in taken:
            self.memory[block] = []
        return taken

    def _remove(self, item: FakeRequest, why: AbortReason) -> None:
        (self.running if item in self.running else self.waiting).remove(item)
        self.preempted_ids.discard(item.request.request_id)
        self.free += item.table
        item.table, item.off = [], why
        item.freezing = item.frozen = item.leaving = False

    def _admit(self) -> None:
        for item in sorted(self.waiting, key=lambda r: r.order):
            need = -(-len(item.tokens) // BLOCK_TOKENS)
            if len(self.running) >= self.max_running or need > len(self.free):
                return
            self.waiting.remove(item)
            self.preempted_ids.discard(item.request.request_id)
            item.table = self._take(need)
            tokens = item.tokens
            for index, token in enumerate(tokens[:-1]):
                self.memory[item.table[index // BLOCK_TOKENS]].append(token)
            item.computed = len(tokens) - 1
            self.running.append(item)

    def _make_room(self, item: FakeRequest, result: StepResult) -> bool:
        """Have a block for the newest token's KV; preempt the last in order for it."""
        while len(item.table) * BLOCK_TOKENS <= item.computed:
            if self.free:
                item.table += self._take(1)
                continue
            victim = max((r for r in self.running if not r.frozen), key=lambda r: r.order)
            if self.steps_ahead and victim is not item and len(victim.table) * BLOCK_TOKENS > victim.computed:
                self._decode(victim, result)
            if victim not in self.running:
                continue
            self._remove(victim, AbortReason.preempted)
            victim.computed = 0
            self.waiting.append(victim)
            self.preempted_ids.add(victim.request.request_id)
            result.preempted.append(victim.request.request_id)
            if victim is item:
                return False
        return True

    def _decode(self, item: FakeRequest, result: StepResult) -> None:
        newest = item.tokens[-1]
        self.memory[item.table[item.computed // BLOCK_TOKENS]].append(newest)
        item.computed += 1
        seen = [token for block in item.table for token in self.memory[block]]
        token = next_token(seen[: item.computed])
        index = len(item.generated)
        item.generated.append(token)
        done = len(item.generated) >= int(item.request.sampling["max_tokens"])
        request_id = item.request.request_id
        result.scheduled[request_id] = 1
        result.outputs.append(Output(request_id, index, [token], "length" if done else None))
        if done:
            self._remove(item, AbortReason.finished)
