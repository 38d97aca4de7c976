"""What front end, llumlets and global scheduler say to each other. Plain picklable values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llumnix.engines.base import Departure, EngineRequest, FinalState, Parcel
from llumnix.load import InstanceLoad


class LinkError(RuntimeError):
    """The other side did not do what was asked; what came of it may be unknown."""


class InstanceLost(LinkError):  # noqa: N818  says what happened, not what went wrong here
    """The process of the instance is gone."""


class Draining(LinkError):  # noqa: N818
    """The instance takes no new request; it has not taken this one."""


class NoAnswer(LinkError):  # noqa: N818
    """Nothing came back within the time limit; the other side may still act."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a process listens, besides Ray, and what a caller has to say first."""

    host: str
    port: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class Tag:
    """Which life of a request is meant: `attempt` counts replays, `hops` counts moves within the attempt."""

    attempt: int = 0
    hops: int = 0


class Chunk(NamedTuple):
    """Tokens of one request from one step of one instance.

    `first_index` counts output tokens from 0. `finish_reason` is set on the last chunk, which may be without tokens.
    `exec_s` is the time of the steps that the request took part in since its chunk before, `step_s` that of the last.
    `extra` is the engine's own object for these tokens (log probabilities). A tuple: it is pickled for every token.
    """

    request_id: str
    attempt: int
    first_index: int
    tokens: tuple[int, ...]
    finish_reason: str | None = None
    hops: int = 0
    exec_s: float = 0.0
    step_s: float = 0.0
    stop_reason: int | str | None = None
    extra: Any = None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened at an instance, for records; `time_s` is wall-clock time."""

    time_s: float
    kind: str
    instance_id: int | None
    request_id: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """A request has left this instance for another; `incarnation` is that of the destination. `downtime_s`: frozen."""

    request_id: str
    tag: Tag
    destination: int
    incarnation: str
    downtime_s: float


@dataclass(frozen=True, slots=True)
class Unknown:
    """A request left this instance and whether it arrived is not known: somebody has to ask."""

    request_id: str
    tag: Tag
    destination: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """A request that came from another instance has its next token.

    `gap_s`: since its last token there. `wait_s`: since it came, if its KV cache had to be computed again.
    """

    request_id: str
    attempt: int
    gap_s: float
    wait_s: float = 0.0


Item = Chunk | Notice | Moved | Unknown | Resumed


@dataclass(frozen=True, slots=True)
class News:
    """Answer to a poll: everything after the number asked for.

    `stuck_s`: how long what the engine does, a step or an answer, has been going on. `load` is the last report of the
    instance, `steps` the number of its steps in this run. A new `incarnation` means that the process was restarted and
    remembers nothing.
    """

    incarnation: str
    last: int
    items: list[Item] = field(default_factory=list)
    stuck_s: float = 0.0
    load: InstanceLoad | None = None
    steps: int = 0


class Step(NamedTuple):
    """One step of an engine, for records: when it ended, how long it took, its requests and the tokens computed.

    With asynchronous scheduling a call ends one step and begins another; its time is that of a step all the same.
    """

    end_s: float
    duration_s: float
    batch: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Submission:
    """A request on its way to an instance; `generated` are tokens that the client already has (a replay)."""

    request: EngineRequest
    attempt: int = 0
    generated: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Arrival:
    """The beginning of a migration, as the destination hears of it. `tag` is the life that the request begins there."""

    source: int
    tag: Tag
    departure: Departure
    blocks: int
    place: str  # node of the source, which decides how blocks travel
    process: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The destination has reserved: `present_blocks` of the blocks are there already; `carriers` says how to send."""

    incarnation: str
    present_blocks: int
    carriers: tuple[str, ...]
    place: str
    process: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The destination will not take it; `no_memory` if later it might."""

    reason: str
    no_memory: bool = False


@dataclass(frozen=True, slots=True)
class Landing:
    """The last stage in one message: reserve `blocks` more, write the parcels, go on with the request.

    `last_token_s` is the wall-clock time of the request's last token, None if it has none. `recompute`: it was running,
    and its KV cache does not come along. `begin_by_s`, on the node's monotonic clock,
    if parcels only name blocks: later the source may have given up waiting, and its blocks may be somebody else's.
    """

    request_id: str
    tag: Tag
    blocks: int
    first_block: int
    parcels: list[Parcel]
    final: FinalState
    last_token_s: float | None = None
    recompute: bool = False
    begin_by_s: float | None = None


@dataclass(frozen=True, slots=True)
class MoveOutcome:
    """How a migration ended; `reason` is empty if the request moved."""

    moved: bool
    request_id: str | None = None
    reason: str = ""
    stages: int = 0
    copied_blocks: int = 0
    downtime_s: float = 0.0
    carrier: str = ""
