"""What a llumlet may ask of the engine that it owns. Nothing here knows an engine, a network, or a clock.

Every call is made by the one thread that steps the engine, between two steps, and returns at once: nothing waits for
another instance. The two sides of a migration are driven through llumnix.migration.Migration like this:

    action              source                                  destination
    start(blocks)       depart() -> Departure, held_blocks()
    Reserve(blocks)                                             first: reserve(departure, blocks); later: extend()
    Copy(first, n)      read_blocks() -> parcels                write_blocks(parcels)
    Freeze              freeze(); step() until frozen_blocks()
    Copy(last=True)     read_blocks(), final_state()            write_blocks()
    Commit              release(), after the other side         commit(final_state)
    Abort               thaw(), if it was frozen                cancel()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from llumnix.load import InstanceLoad
from llumnix.migration import AbortReason
from llumnix.request import Priority

Ready = Callable[[], None]
"""Waits, in whatever thread, until a copy has ended; returns at once where it ended before the engine answered."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request as the front end hands it in; the same object follows it to every instance.

    `arrival_s` is wall-clock time and orders the queue; `arrival_order` counts requests over the whole cluster.
    `sampling` holds the engine's own sampling options by name (vLLM: arguments of SamplingParams), max_tokens included.
    `native` is the engine's own form of the request where the front end has made one (vLLM: an EngineCoreRequest with
    whatever it needs, such as images or a LoRA adapter); it then takes the place of prompt and sampling.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: dict[str, Any] = field(default_factory=dict)
    priority: Priority = Priority.NORMAL
    arrival_s: float = 0.0
    arrival_order: int = 0
    cache_salt: str | None = None
    native: Any = None


class Output(NamedTuple):
    """Tokens of one request that a step has made.

    `first_index` is the index of `tokens[0]` among all tokens ever generated for the request, on whichever instance:
    whoever delivers them drops what it has, and so delivers each token exactly once. `finish_reason` is None while
    the request goes on, else "stop", "length", "abort" or "error". `logprobs` is the engine's own object. A tuple: it
    is made for every token, and a frozen dataclass takes four times as long.
    """

    request_id: str
    first_index: int
    tokens: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: Any = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did. `scheduled` gives the tokens computed per request of the batch that was scheduled."""

    outputs: list[Output] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    scheduled: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MovableRequest:
    """A running request that could leave; what policies.migration.choose_request looks at."""

    request_id: str
    priority: Priority
    arrival_order: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class KvIdentity:
    """What must be equal on both sides for a KV block of one to mean the same on the other."""

    model: str
    dtype: str
    kv_dtype: str
    block_size_tokens: int
    layer_shapes: tuple[tuple[int, ...], ...]  # per layer, without the axis that counts blocks
    tensor_parallel: int
    max_model_tokens: int


@dataclass(frozen=True, slots=True)
class Departure:
    """What the destination has to know before it reserves. `generated` holds the tokens generated so far.

    `memory` is what each rank of the destination needs to read blocks out of the source's memory by itself; empty
    where that cannot be.
    """

    request: EngineRequest
    generated: tuple[int, ...]
    computed_tokens: int
    identity: KvIdentity
    memory: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class FinalState:
    """What the destination has to know to go on: all generated tokens, and what sampling has to remember.

    KV of [0, computed_tokens) has been copied. `sampler` holds one opaque, picklable value per tensor-parallel rank.
    """

    request_id: str
    generated: tuple[int, ...]
    computed_tokens: int
    sampler: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Parcel:
    """KV blocks of one tensor-parallel rank on their way. Who carries it does not look inside.

    `carrier` names how `content` is to be understood: the blocks themselves, or where the other side finds them.
    """

    carrier: str
    blocks: int
    content: Any


class MigrationRefused(Exception):  # noqa: N818  an answer, not a failure
    """This request cannot move, or not to this instance, and stays where it is; `reason` is one clause."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Engine(Protocol):
    """A continuous-batching engine that is stepped by hand. Blocks are logical: the i-th of a request's table."""

    # --- what it is

    @property
    def block_size_tokens(self) -> int:
        """Tokens per KV block."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block on one tensor-parallel rank: what reading or writing it takes."""

    @property
    def migration_unsupported(self) -> str | None:
        """Why this engine takes part in no migration at all; None if it does. It serves in both cases."""

    @property
    def carriers(self) -> tuple[str, ...]:
        """Names of the carriers that `read_blocks` accepts here."""

    def carriers_from(self, departure: Departure) -> tuple[str, ...]:
        """Return the names of the carriers by which blocks of this departure can arrive here."""

    # --- serving

    def add(self, request: EngineRequest, generated: Sequence[int] = ()) -> None:
        """Queue a request. With `generated`, go on after these tokens: their KV is computed again, none is emitted."""

    def abort(self, request_id: str) -> None:
        """Forget a request in whatever state it is, also one that is frozen or arriving; unknown ids are ignored."""

    def has_work(self) -> bool:
        """True if a step would do anything."""

    def step(self) -> StepResult:
        """Run one scheduling step (with asynchronous scheduling: schedule one and collect an earlier one)."""

    def load(self, instance_id: int, *, draining: bool) -> InstanceLoad:
        """Report the present state."""

    def forget_prefixes(self) -> None:
        """Drop what prefix caching keeps, once no request is left: the next run is to begin like the first."""

    def shutdown(self) -> None:
        """Free the device."""

    # --- migration, source

    def movable(self) -> list[MovableRequest]:
        """Return the decoding requests that could leave now."""

    def queued(self) -> list[MovableRequest]:
        """Return the waiting requests that could leave now, head of line first."""

    def refusal(self, request_id: str) -> str | None:
        """Return why this request cannot migrate; None if it can."""

    def depart(self, request_id: str) -> Departure:
        """Begin to move a running or waiting request; raises MigrationRefused."""

    def held_blocks(self, request_id: str) -> int | AbortReason:
        """Return the blocks of a departing request, of which the last is still being written, or why it is off."""

    def read_blocks(self, request_id: str, first_block: int, blocks: int, carrier: str) -> list[Parcel]:
        """Copy out final blocks from `first_block` on, one parcel per rank; fewer where none has been written yet.

        The parcels that were read before for this request must have been written by then, or be given up.
        """

    def freeze(self, request_id: str) -> None:
        """Take the request out of the batch. Steps in flight still finish: step until `frozen_blocks` is not None."""

    def frozen_blocks(self, request_id: str) -> int | AbortReason | None:
        """Return the blocks of the frozen request; None while a step with it is in flight; or why it is off."""

    def final_state(self, request_id: str) -> FinalState:
        """Describe the frozen request."""

    def thaw(self, request_id: str) -> bool:
        """End the departure and put the request back into the batch if frozen; False if it is gone."""

    def release(self, request_id: str) -> bool:
        """Forget the frozen request, which lives on elsewhere; False if it was aborted meanwhile (abort it there)."""

    # --- migration, destination

    def reserve(self, departure: Departure, blocks: int) -> int:
        """Set the first `blocks` blocks aside; return how many of them are here already. Raises MigrationRefused."""

    def extend(self, request_id: str, blocks: int) -> bool:
        """Set `blocks` more aside; False if there is no room (what was reserved stays until `cancel`)."""

    def expect(self, request_id: str) -> None:
        """Be ready for the commit of a request that arrives: it comes any moment. An idle engine may warm up for it."""

    def write_blocks(self, request_id: str, first_block: int, parcels: Sequence[Parcel]) -> Ready:
        """Fill reserved blocks from `first_block` on. Steps go on meanwhile; `commit` orders itself behind the copy.

        Until the answer says that it is ready, the source must keep its blocks as they are.
        """

    def commit(self, final: FinalState) -> None:
        """Go on with the request: the next step schedules exactly the tokens without KV, one if it was decoding."""

    def cancel(self, request_id: str) -> None:
        """Free what was reserved; unknown ids are ignored."""
