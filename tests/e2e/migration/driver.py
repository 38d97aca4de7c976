"""Drives engines by hand: steps them, collects tokens, and carries out migrations exactly as the protocol says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llumnix.engines.base import (
    Departure,
    Engine,
    EngineRequest,
    FinalState,
    MigrationRefused,
    Output,
    Parcel,
    Ready,
)
from llumnix.migration import Abort, AbortReason, Action, Commit, Copy, Freeze, Migration, Reserve
from llumnix.request import Priority

BLOCK = 32  # the smallest that vLLM's attention for CPUs takes

Make = Callable[..., Any]  # of the fixture engine_of
Hook = Callable[[Action], None]


def prompt(seed: int, tokens: int) -> tuple[int, ...]:
    """A prompt without repetition that a cache could profit from; tokens 0 to 2 are special."""
    return tuple(3 + (seed * 131 + j * j * 7 + j * 3) % 997 for j in range(tokens))


def request(request_id: str, tokens: int, priority: Priority = Priority.NORMAL, **sampling: Any) -> EngineRequest:
    """A request whose prompt and place in the queue follow from its id."""
    order = sum(ord(c) * 31**i for i, c in enumerate(request_id)) % 100_003
    options = {"temperature": 0.0, "max_tokens": 80, "ignore_eos": True} | sampling
    return EngineRequest(
        request_id, prompt(order, tokens), options, priority, arrival_s=float(order), arrival_order=order
    )


@dataclass(slots=True)
class Delivered:
    """What reached the client. A token that is lost or comes twice fails at once."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    finished: dict[str, str] = field(default_factory=dict)
    logprobs: dict[str, list[float]] = field(default_factory=dict)
    makers: dict[str, list[int]] = field(default_factory=dict)  # which engine made each token

    def take(self, output: Output, engine: int) -> None:
        tokens = self.tokens.setdefault(output.request_id, [])
        assert output.first_index == len(tokens), f"{output}: {len(tokens)} tokens have come so far"
        assert output.request_id not in self.finished, f"{output} after the end"
        tokens.extend(output.tokens)
        self.makers.setdefault(output.request_id, []).extend([engine] * len(output.tokens))
        if output.logprobs is not None:
            rows = output.logprobs.logprobs.tolist()
            self.logprobs.setdefault(output.request_id, []).extend(value for row in rows for value in row)
        if output.finish_reason is not None:
            self.finished[output.request_id] = output.finish_reason


class Cluster:
    """Engines of one process, and what they delivered."""

    def __init__(self, *engines: Engine) -> None:
        self.engines = engines
        self.delivered = Delivered()
        self.scheduled: list[list[dict[str, int]]] = [[] for _ in engines]
        self.preempted: list[str] = []

    def step(self, *which: int) -> None:
        """One step of each engine, or of those named."""
        for i in which or range(len(self.engines)):
            result = self.engines[i].step()
            if result.scheduled:
                self.scheduled[i].append(result.scheduled)
            self.preempted.extend(result.preempted)
            for output in result.outputs:
                self.deliver(output, i)

    def deliver(self, output: Output, engine: int) -> None:
        """Hand over what one engine has made."""
        self.delivered.take(output, engine)

    def drain(self) -> None:
        """Step until nothing is left."""
        for _ in range(20_000):
            if not any(engine.has_work() for engine in self.engines):
                return
            self.step()
        raise AssertionError("no progress")

    def step_until(self, tokens: int, request_ids: Iterable[str], engine: int = 0) -> None:
        """Step one engine until each of these requests has so many tokens."""
        wanted = set(request_ids)
        for _ in range(20_000):
            if all(len(self.delivered.tokens.get(i, ())) >= tokens for i in wanted):
                return
            self.step(engine)
        raise AssertionError("no progress")

    def assert_clean(self) -> None:
        """No request, no reservation and no block is left anywhere."""
        for engine in self.engines:
            load = engine.load(0, draining=False)
            assert (load.running, load.waiting) == (0, 0)
            assert load.free_blocks == load.total_blocks


@dataclass(slots=True)
class Moved:
    """How a migration went: `copied` holds the blocks of each copy."""

    ok: bool
    reason: str = ""
    copied: list[int] = field(default_factory=list)
    hit_blocks: int = 0


def migrate(
    cluster: Cluster,
    request_id: str,
    source: int,
    destination: int,
    *,
    max_stages: int = 4,
    last_stage_max_blocks: int = 1,
    carrier: str = "inline",
    decode_between: bool = True,
    hook: Hook = lambda action: None,
) -> Moved:
    """Move one request; both sides go on stepping between stages unless told otherwise."""
    a, b = cluster.engines[source], cluster.engines[destination]
    machine = Migration(max_stages=max_stages, last_stage_max_blocks=last_stage_max_blocks)
    moved = Moved(False)
    try:
        departure: Departure = a.depart(request_id)
    except MigrationRefused as refused:
        moved.reason = refused.reason
        return moved
    first = True

    def answer(blocks: int | AbortReason, then: Callable[[int], Action]) -> Action:
        return machine.gone(blocks) if isinstance(blocks, AbortReason) else then(blocks)

    action = answer(a.held_blocks(request_id), machine.start)
    while True:
        hook(action)
        match action:
            case Reserve(blocks):
                try:
                    if first:
                        moved.hit_blocks = b.reserve(departure, blocks)
                        assert carrier in b.carriers_from(departure)
                        granted, first = True, False
                    else:
                        granted = b.extend(request_id, blocks)
                except MigrationRefused as refused:
                    moved.reason, granted = refused.reason, False
                action = machine.reserved() if granted else machine.refused()
            case Copy(first_block, blocks, last):
                skip = max(first_block, moved.hit_blocks)
                parcels: Sequence[Parcel] = a.read_blocks(request_id, skip, first_block + blocks - skip, carrier)
                if decode_between and not last:
                    cluster.step(source, destination)
                b.write_blocks(request_id, skip, parcels)()
                moved.copied.append(parcels[0].blocks if parcels else 0)
                action = machine.copied(0) if last else answer(a.held_blocks(request_id), machine.copied)
            case Freeze():
                a.freeze(request_id)
                while (frozen := a.frozen_blocks(request_id)) is None:
                    cluster.step(source)
                action = answer(frozen, machine.froze)
            case Commit():
                final: FinalState = a.final_state(request_id)
                b.commit(final)
                moved.ok = a.release(request_id)
                if not moved.ok:
                    b.abort(request_id)
                return moved
            case Abort(reason):
                b.cancel(request_id)
                a.thaw(request_id)
                moved.reason = moved.reason or reason
                return moved


class Withholding:
    """An engine that loses part of what arrives: what negative controls need.

    A lost block is wiped. Merely not writing it would not do: the memory may hold the same tokens' KV from before.
    """

    def __init__(self, engine: Engine, *, block: int | None = None, sampler: bool = False) -> None:
        self._engine = engine
        self._block = block
        self._sampler = sampler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def write_blocks(self, request_id: str, first_block: int, parcels: Sequence[Parcel]) -> Ready:
        for parcel in parcels:
            if self._block is not None and first_block <= self._block < first_block + parcel.blocks:
                layers, rows = parcel.content.shape[:2]
                parcel.content.data.reshape(layers, rows, -1)[:, self._block - first_block] = 0
        return self._engine.write_blocks(request_id, first_block, parcels)

    def commit(self, final: FinalState) -> None:
        if self._sampler:
            fresh = type(self)._fresh_state
            final = replace(final, sampler=tuple(fresh(state) for state in final.sampler))
        self._engine.commit(final)

    @staticmethod
    def _fresh_state(state: bytes | None) -> bytes | None:
        """The state of a generator that has not been used for this request."""
        import torch

        return None if state is None else torch.Generator().manual_seed(0).get_state().numpy().tobytes()
