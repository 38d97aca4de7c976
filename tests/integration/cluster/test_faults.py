"""The fault table: whatever is hit at whichever step of a migration, every request ends as it should.

ENDINGS is the table: what is hit, at which step of the protocol, and what becomes of the request that moves. In every
cell the other requests, the blocks and the cluster afterwards are looked at as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from fake_engine import BLOCK_TOKENS, FakeEngine, expected_tokens
from local import Link, LocalCluster, assert_exact, no_leak, wait_until
from standstill import Standstill
from watched import WatchedFake

from llumnix.cluster.real.front_end import Stream
from llumnix.cluster.real.messages import InstanceLost, LinkError, MoveOutcome, NoAnswer
from llumnix.cluster.real.spec import Limits, OnLoss
from llumnix.policies.migration import MigrationPolicy

LIMITS = Limits(control_s=0.6, copy_s=0.6, migration_s=5.0, poll_s=0.03, step_s=0.6, reservation_s=0.5, start_s=10.0)
POLICY = MigrationPolicy(max_stages=8, last_stage_max_blocks=1)

STOOD_STILL_S = 0.25  # half of the shortest of these limits
ATTEMPTS = 3

SOURCE, DESTINATION = 0, 1
MOVED = 99  # the last to arrive, and so the first to be preempted
STEPS = [
    "reserve",
    "reserve answered",
    "stage",
    "stage answered",
    "extend",
    "extend answered",
    "freeze",
    "expect",
    "land",
    "land answered",
    "release",
]
"""A message before it arrives, and before its answer does; `freeze` and `release` happen inside the source."""


@dataclass
class Cell:
    """One request on its way from `source` to `destination`, and a fault that strikes once, at `step`."""

    cluster: LocalCluster
    stream: Stream
    source: Link
    destination: Link
    step: str
    ending: str
    strike: Callable[[Cell], None]
    struck: bool = False
    outcome: MoveOutcome | None = None
    broken: list[BaseException] = field(default_factory=list)
    stolen: list[tuple[FakeEngine, list[int]]] = field(default_factory=list)
    freezing: bool = False

    def arm(self) -> None:
        self.destination.before = self._before
        self.destination.after = lambda name: self._reach(f"{name.replace('receive', 'stage')} answered")
        engine = self.source.engine
        assert isinstance(engine, WatchedFake)
        engine.at = self._at_source

    def move(self) -> None:
        """Move the request as the source's own thread would, and end with it if the source dies."""
        try:
            self.outcome = self.source.move(self.stream.life.request.request_id, self.destination.instance_id, POLICY)
        except (SystemExit, LinkError):
            pass
        except BaseException as error:
            self.broken.append(error)

    def _at_source(self, step: str) -> None:
        """Let the last step of the request wait until its destination is told to expect it: later it is not told."""
        end_s = time.monotonic() + 0.75 * LIMITS.step_s
        while step == "step" and self.freezing and "expect" not in self.destination.calls and time.monotonic() < end_s:
            time.sleep(0.001)
        self.freezing = step == "freeze"
        self._reach(step)

    def _before(self, name: str) -> None:
        if name == "receive":
            self._let_it_grow()
        self._reach("stage" if name == "receive" else name)

    def _let_it_grow(self) -> None:
        """Hold the first stage until two more blocks are full, so that there is a second one."""
        known = len(self.stream.tokens)
        end_s = time.monotonic() + 0.3
        while len(self.stream.tokens) < known + 2 * BLOCK_TOKENS and time.monotonic() < end_s:
            time.sleep(0.001)

    def _reach(self, step: str) -> None:
        if step == self.step and not self.struck:
            self.struck = True
            self.strike(self)


# --- what is hit


def kill_source(cell: Cell) -> None:
    cell.source.kill()
    raise SystemExit("the source's thread goes down with it")


def kill_destination(cell: Cell) -> None:
    cell.destination.kill()


def kill_scheduler(cell: Cell) -> None:
    cell.cluster.kill_scheduler()


def cut_source(cell: Cell) -> None:
    """The front end does not hear of the source any more, and so has it restarted."""
    _cut(cell.source)
    raise SystemExit("the source's thread goes down with it")


def cut_destination(cell: Cell) -> None:
    _cut(cell.destination)


def _cut(link: Link) -> None:
    link.cut = NoAnswer
    wait_until(lambda: link.kills == 1)
    link.cut = None


def lose_sight_of_source(cell: Cell) -> None:
    """Nothing reaches the source for a while, not even the kill; meanwhile the source goes on."""
    _lose_sight(cell, cell.source)


def lose_sight_of_destination(cell: Cell) -> None:
    _lose_sight(cell, cell.destination)


def _lose_sight(cell: Cell, link: Link) -> None:
    link.cut, link.unkillable = InstanceLost, True
    wait_until(lambda: link.instance_id in cell.cluster.front_end._down)
    if link is cell.source and cell.ending == "L":
        wait_until(lambda: cell.stream.life.replays > 0 or cell.stream.ended.is_set())

    def heal() -> None:
        link.cut, link.unkillable = None, False

    threading.Timer(0.3, heal).start()


def hang_source(cell: Cell) -> None:
    _hang(cell.source)


def hang_destination(cell: Cell) -> None:
    _hang(cell.destination)


def _hang(link: Link) -> None:
    """Stop the engine's thread where it is, or at its next question, until long after it has been given up."""
    thread = link.llumlet.thread
    if threading.current_thread() is thread._thread:
        time.sleep(4 * LIMITS.step_s)
    else:
        thread._commands.put(lambda: time.sleep(4 * LIMITS.step_s))


def lose_message(cell: Cell) -> None:
    raise NoAnswer("lost")


def refuse(cell: Cell) -> None:
    """The destination takes nothing more, and has dropped what it had set aside."""
    llumlet, engine = cell.destination.llumlet, cell.destination.engine
    engine.refuse_reason = "not now"

    def drop(_: object) -> None:
        for request_id in list(llumlet._state.coming):
            llumlet._drop_coming(engine, request_id)

    llumlet.thread.call(drop, 1.0)


def exhaust_source(cell: Cell) -> None:
    """No block is free at the source; the request that moves is the first to be preempted."""
    _exhaust(cell, cell.source)


def exhaust_destination(cell: Cell) -> None:
    _exhaust(cell, cell.destination)


def _exhaust(cell: Cell, link: Link) -> None:
    def steal(engine: FakeEngine) -> None:
        cell.stolen.append((engine, engine.free))
        engine.free = []

    thread = link.llumlet.thread
    if threading.current_thread() is thread._thread:
        steal(link.engine)
    else:
        thread.call(steal, 1.0)


def cancel(cell: Cell) -> None:
    cell.stream.cancel()


FAULTS = {
    "source killed": kill_source,
    "destination killed": kill_destination,
    "global scheduler killed": kill_scheduler,
    "link to source lost": cut_source,
    "link to destination lost": cut_destination,
    "sight of source lost": lose_sight_of_source,
    "sight of destination lost": lose_sight_of_destination,
    "source hangs": hang_source,
    "destination hangs": hang_destination,
    "message lost": lose_message,
    "destination refuses": refuse,
    "source out of memory": exhaust_source,
    "destination out of memory": exhaust_destination,
    "client cancels": cancel,
}
HITS_SOURCE = {"source killed", "link to source lost", "sight of source lost", "source hangs"}
HITS_DESTINATION = {
    "destination killed",
    "link to destination lost",
    "sight of destination lost",
    "destination hangs",
}

ENDINGS = {
    # steps:                       reserve  stage  extend  freeze  expect  land  release
    "source killed":              "L L      L L    L L     L       L       L .   .",
    "destination killed":         ". .      . .    . .     .       .       L L   L",
    "global scheduler killed":    ". .      . .    . .     .       .       . .   .",
    "link to source lost":        "L L      L L    L L     L       L       L .   .",
    "link to destination lost":   ". .      . .    . .     .       .       L L   L",
    "sight of source lost":       "L L      L L    L L     L       L       L .   .",
    "sight of destination lost":  "L L      L L    L L     L       L       L L   L",
    "source hangs":               "L L      L L    L L     L       -       . .   .",
    "destination hangs":          ". .      . .    . .     L       L       L L   L",
    "message lost":               ". .      . .    . .     -       .       L .   -",
    "destination refuses":        ". .      . .    . .     .       .       . .   .",
    "source out of memory":       ". .      . .    . .     .       .       . .   .",
    "destination out of memory":  ". .      . .    . .     .       .       . .   .",
    "client cancels":             "C C      C C    C C     C       C       C C   C",
}  # fmt: skip
"""What becomes of the request that moves: it goes on (.), is lost with its instance (L), or cancelled (C).

A request is lost with whoever has it: the source until the last message is sent, then the destination. A source that
hangs as it lets the destination expect the request may have ended the step in flight before, or not (-). That the last
message arrived is only known by its answer, so that a request is also lost if the destination does not give one.
"""

CELLS = [
    (fault, step, ending, on_loss)
    for fault, endings in ENDINGS.items()
    for step, ending in zip(STEPS, endings.split(), strict=True)
    for on_loss in OnLoss
    if ending != "-" and (on_loss is OnLoss.replay or fault in HITS_SOURCE | HITS_DESTINATION or ending == "L")
]


@pytest.mark.parametrize(("fault", "step", "ending", "on_loss"), CELLS, ids=str)
def test_cell(fault: str, step: str, ending: str, on_loss: OnLoss) -> None:
    """What fails while the whole process stands still says nothing, since limits run out by that: it is tried again."""
    for attempt in range(ATTEMPTS):
        standstill = Standstill()
        try:
            with standstill:
                try_cell(fault, step, ending, on_loss)
            return
        except AssertionError:
            if standstill.longest_s < STOOD_STILL_S or attempt == ATTEMPTS - 1:
                raise


def try_cell(fault: str, step: str, ending: str, on_loss: OnLoss) -> None:
    hit = {SOURCE} if fault in HITS_SOURCE else {DESTINATION} if fault in HITS_DESTINATION else set()
    with LocalCluster(
        3,
        build=lambda _: WatchedFake(blocks=160, steps_ahead=True),
        on_loss=on_loss,
        limits=LIMITS,
        restart_s=0.02,
    ) as cluster:
        others = [start(cluster, number, at=number, tokens=250) for number in range(3)]
        stream = start(cluster, MOVED, at=SOURCE, tokens=200)
        cell = Cell(cluster, stream, cluster.links[SOURCE], cluster.links[DESTINATION], step, ending, FAULTS[fault])
        cell.arm()
        mover = threading.Thread(target=cell.move)
        mover.start()
        mover.join(15)
        assert not mover.is_alive()
        assert cell.struck
        assert cell.broken == []
        give_back(cell)
        for number, other in enumerate(others):
            check_ending(other, "L" if number in hit else ".", on_loss)
            assert other.life.migrations == 0
        check_ending(stream, ending, on_loss)
        no_leak(cluster)
        check_service(cell)


def check_ending(stream: Stream, ending: str, on_loss: OnLoss) -> None:
    """The tokens of an undisturbed run, all of them or, where the request had to end, those up to then."""
    lost = ending == "L"
    if ending == "C" or (lost and on_loss is OnLoss.fail):
        assert stream.wait(15)
        assert stream.life.finish_reason == ("error" if lost else "abort")
        assert bool(stream.life.error) is lost
        expected = expected_tokens(stream.life.request.prompt, len(stream.tokens))
        assert len(expected) > 3
        assert [token for chunk in stream for token in chunk.tokens] == expected
    else:
        assert_exact(stream, 15)
        assert stream.life.replays == lost


def start(cluster: LocalCluster, number: int, *, at: int, tokens: int) -> Stream:
    cluster.pinned = at
    stream = cluster.submit(number, tokens=tokens, prompt=30)
    wait_until(lambda: len(stream.tokens) > 3)
    cluster.pinned = None
    return stream


def give_back(cell: Cell) -> None:
    """The memory that was taken, and the destination's good will."""
    for engine, blocks in cell.stolen:
        engine.free += blocks
    cell.destination.engine.refuse_reason = None


def check_service(cell: Cell) -> None:
    """Every instance serves, and the two of the migration exchange a request, whichever of them is new."""
    cluster = cell.cluster
    cell.destination.before = cell.destination.after = lambda name: None
    wait_until(lambda: not cluster.front_end._down, LIMITS.start_s)
    if cluster.scheduler_dead:
        assert_exact(cluster.submit(200, tokens=5))
        assert cluster.front_end.bypassed > 0
        cluster.restart_scheduler()
    wait_until(lambda: set(cluster.control._last) == {0, 1, 2})
    for number in range(3):
        assert_exact(start(cluster, 300 + number, at=number, tokens=8))
    stream = start(cluster, MOVED, at=SOURCE, tokens=100)
    outcome = cell.source.move(stream.life.request.request_id, DESTINATION)
    assert outcome.moved, outcome
    assert_exact(stream)
    no_leak(cluster)
