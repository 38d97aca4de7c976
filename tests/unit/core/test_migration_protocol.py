"""The migration state machine on every sequence of events that a driver can produce, and on those it must not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product

import pytest

from llumnix.migration import (
    Abort,
    AbortReason,
    Action,
    Commit,
    Copy,
    Freeze,
    Migration,
    ProtocolError,
    Reserve,
    State,
)


def test_two_stages_as_in_the_paper() -> None:
    machine = Migration(max_stages=2, last_stage_max_blocks=0)
    assert machine.start(5) == Reserve(4)  # the fifth block is still being written
    assert machine.reserved() == Copy(0, 4, last=False)
    assert machine.copied(7) == Freeze()
    assert machine.froze(7) == Reserve(3)
    assert machine.reserved() == Copy(4, 3, last=True)
    assert machine.copied(7) == Commit()
    assert (machine.stages, machine.copied_blocks, machine.reserved_blocks) == (2, 7, 7)
    assert machine.ended


def test_one_stage_is_stop_and_copy() -> None:
    machine = Migration(max_stages=1, last_stage_max_blocks=0)
    assert machine.start(5) == Freeze()
    assert machine.froze(5) == Reserve(5)
    assert machine.reserved() == Copy(0, 5, last=True)
    assert machine.copied(5) == Commit()


def test_recompute_copies_nothing() -> None:
    machine = Migration(max_stages=4, last_stage_max_blocks=0, recompute=True)
    assert machine.start(5) == Freeze()
    assert machine.froze(6) == Reserve(0)
    assert machine.reserved() == Copy(0, 0, last=True)
    assert machine.copied(0) == Commit(recompute=True)
    assert (machine.copied_blocks, machine.reserved_blocks) == (0, 0)


def test_a_single_block_is_frozen_at_once() -> None:
    machine = Migration(max_stages=4, last_stage_max_blocks=0)
    assert machine.start(1) == Freeze()


def test_stages_go_on_until_little_is_left() -> None:
    machine = Migration(max_stages=9, last_stage_max_blocks=2)
    assert machine.start(20) == Reserve(19)
    machine.reserved()
    assert machine.copied(25) == Reserve(5)  # 6 left: one more stage while decoding
    assert machine.reserved() == Copy(19, 5, last=False)
    assert machine.copied(26) == Freeze()  # 2 left
    assert machine.froze(27) == Reserve(3)


@pytest.mark.parametrize(("stages_before", "last_stage_max_blocks"), [(0, 20), (1, 6)])
def test_the_limit_of_the_last_stage_is_inclusive(stages_before: int, last_stage_max_blocks: int) -> None:
    for limit, freezes in ((last_stage_max_blocks, True), (last_stage_max_blocks - 1, False)):
        machine = Migration(max_stages=9, last_stage_max_blocks=limit)
        action = machine.start(20)
        if stages_before:
            machine.reserved()
            action = machine.copied(25)
        assert (action == Freeze()) is freezes


# --- every sequence of events


@dataclass(frozen=True)
class Walk:
    """A machine after some events, and what its driver knows: blocks at the source, blocks that have arrived."""

    machine: Migration
    action: Action
    blocks: int
    arrived: tuple[int, ...] = ()
    reserved: int = 0
    freezes: int = 0
    stages: int = 0
    events: tuple[str, ...] = field(default=())

    def after(self, event: str, *arguments: object, **known: object) -> Walk:
        machine = copy.copy(self.machine)
        action = getattr(machine, event)(*arguments)
        return replace(self, machine=machine, action=action, events=(*self.events, event), **known)


def next_walks(walk: Walk) -> Iterator[Walk]:
    """Yield the walk after each event that can follow its last action; the source adds up to 2 blocks a stage."""
    for reason in AbortReason:
        yield walk.after("gone", reason)
    match walk.action:
        case Reserve(blocks):
            yield walk.after("refused")
            yield walk.after("reserved", reserved=walk.reserved + blocks)
        case Copy(first, blocks, last):
            arrived = (*walk.arrived, *range(first, first + blocks))
            for grown in [0] if last else [0, 1, 2]:
                known = {"blocks": walk.blocks + grown, "arrived": arrived, "stages": walk.stages + 1}
                yield walk.after("copied", walk.blocks + grown, **known)
        case Freeze():
            for grown in (0, 1):
                known = {"blocks": walk.blocks + grown, "freezes": walk.freezes + 1}
                yield walk.after("froze", walk.blocks + grown, **known)


def all_walks(max_stages: int, last_stage_max_blocks: int, blocks: int) -> Iterator[Walk]:
    machine = Migration(max_stages=max_stages, last_stage_max_blocks=last_stage_max_blocks)
    todo = [Walk(machine, machine.start(blocks), blocks)]
    while todo:
        walk = todo.pop()
        yield walk
        if not walk.machine.ended:
            todo.extend(next_walks(walk))


SHAPES = list(product([1, 2, 3, 4], [0, 1, 2], [1, 2, 4]))


@pytest.mark.parametrize(("max_stages", "last_stage_max_blocks", "blocks"), SHAPES)
def test_every_sequence_of_events_keeps_the_invariants(
    max_stages: int, last_stage_max_blocks: int, blocks: int
) -> None:
    ends = set()
    for walk in all_walks(max_stages, last_stage_max_blocks, blocks):
        machine = walk.machine
        assert list(walk.arrived) == list(range(len(walk.arrived))), "each block is copied once, in order"
        assert machine.copied_blocks == len(walk.arrived)
        assert machine.reserved_blocks == walk.reserved
        assert len(walk.arrived) <= walk.reserved <= walk.blocks
        assert walk.stages == machine.stages <= max_stages
        assert walk.freezes <= 1
        assert machine.frozen is (walk.freezes == 1)
        assert machine.ended is (machine.state in (State.committed, State.aborted))
        match walk.action:
            case Reserve(count) | Copy(_, count, _):
                assert count > 0
                if not machine.frozen:
                    assert len(walk.arrived) + count < walk.blocks, "the block being written is not copied"
                else:
                    assert len(walk.arrived) + count == walk.blocks, "the last stage copies all that is left"
            case Commit():
                assert machine.state is State.committed
                assert machine.frozen
                assert len(walk.arrived) == walk.reserved == walk.blocks
            case Abort(reason):
                assert machine.state is State.aborted
                assert walk.events[-1] in ("gone", "refused")
                assert (walk.events[-1] != "refused") or reason is AbortReason.no_memory
        if machine.ended:
            ends.add(type(walk.action))
    assert ends == {Commit, Abort}


@pytest.mark.parametrize(("max_stages", "last_stage_max_blocks", "blocks"), SHAPES)
def test_an_event_out_of_turn_is_a_protocol_error_and_changes_nothing(
    max_stages: int, last_stage_max_blocks: int, blocks: int
) -> None:
    events = {
        "start": (3,),
        "reserved": (),
        "refused": (),
        "copied": (9,),
        "froze": (9,),
        "gone": (AbortReason.finished,),
    }
    for walk in all_walks(max_stages, last_stage_max_blocks, blocks):
        allowed = {after.events[-1] for after in next_walks(walk)} if not walk.machine.ended else set()
        for event in events.keys() - allowed:
            machine = copy.copy(walk.machine)
            with pytest.raises(ProtocolError, match=machine.state):
                getattr(machine, event)(*events[event])
            assert vars(machine) == vars(walk.machine)


def test_nothing_but_start_or_loss_can_happen_to_a_new_machine() -> None:
    for event, arguments in (("reserved", ()), ("refused", ()), ("copied", (1,)), ("froze", (1,))):
        with pytest.raises(ProtocolError):
            getattr(Migration(max_stages=2, last_stage_max_blocks=0), event)(*arguments)
    machine = Migration(max_stages=2, last_stage_max_blocks=0)
    assert machine.gone(AbortReason.source_lost) == Abort(AbortReason.source_lost)


@pytest.mark.parametrize("reason", AbortReason)
def test_a_migration_can_be_aborted_in_every_state(reason: AbortReason) -> None:
    states = set()
    for walk in all_walks(3, 0, 4):
        if not walk.machine.ended:
            states.add((walk.machine.state, walk.machine.frozen))
            assert walk.after("gone", reason).action == Abort(reason)
    assert states == {
        (State.reserving, False),
        (State.copying, False),
        (State.freezing, False),
        (State.reserving, True),
        (State.copying, True),
    }
