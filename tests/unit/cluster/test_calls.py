"""Calls over connections of their own: answered once, raising, hanging, or broken off without an answer."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from llumnix.cluster.real import channel
from llumnix.cluster.real.calls import CallLink, CallServer
from llumnix.cluster.real.messages import Draining, InstanceLost, NoAnswer


class Callee:
    """Answers calls, when it may."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.server = CallServer({"twice": self.twice, "note": self.told.append, "refuse": self.refuse}, "127.0.0.1")

    def twice(self, value: Any) -> Any:
        self.told.append(value)
        self.may_answer.wait(10)
        return value + value

    def refuse(self, error: Exception) -> None:
        raise error


@pytest.fixture
def callee() -> Iterator[Callee]:
    made = Callee()
    yield made
    made.may_answer.set()
    made.server.close()


def test_an_answer_comes_back_and_the_next_call_takes_the_same_connection(callee: Callee) -> None:
    link = CallLink(callee.server.address)
    assert [link.ask("twice", 5.0, value) for value in (1, "a", (2,))] == [2, "aa", (2, 2)]
    assert len(link._idle) == 1


def test_a_large_call_arrives_whole(callee: Callee) -> None:
    large = bytes(range(256)) * 40_000
    assert CallLink(callee.server.address).ask("twice", 5.0, large) == large + large


def test_calls_at_the_same_time_do_not_wait_for_each_other_nor_mix_up(callee: Callee) -> None:
    callee.may_answer.clear()
    link = CallLink(callee.server.address)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(link.ask, "twice", 10.0, value) for value in range(20)]
        end_s = time.monotonic() + 10
        while len(callee.told) < 20 and time.monotonic() < end_s:
            time.sleep(0.01)
        callee.may_answer.set()
        assert [answer.result() for answer in answers] == [2 * value for value in range(20)]


@pytest.mark.parametrize("error", [Draining("it drains"), ValueError("too long"), NoAnswer("the engine hangs")])
def test_what_a_method_raises_is_raised_here_and_the_link_goes_on(callee: Callee, error: Exception) -> None:
    link = CallLink(callee.server.address)
    with pytest.raises(type(error), match=str(error)):
        link.ask("refuse", 5.0, error)
    assert link.ask("twice", 5.0, 3) == 6


def test_a_call_that_hangs_is_waited_for_as_long_as_said_and_its_answer_is_nobody_elses(callee: Callee) -> None:
    callee.may_answer.clear()
    link = CallLink(callee.server.address)
    started_s = time.monotonic()
    with pytest.raises(NoAnswer, match=r"0\.2 s"):
        link.ask("twice", 0.2, 1)
    assert time.monotonic() - started_s < 5
    callee.may_answer.set()
    assert link.ask("twice", 5.0, 10) == 20


def test_an_answer_that_cannot_be_sent_leaves_the_caller_without_one(callee: Callee) -> None:
    with pytest.raises(InstanceLost):
        CallLink(callee.server.address).ask("refuse", 5.0, UnsendableError())


def test_who_does_not_know_the_secret_calls_nothing(callee: Callee) -> None:
    stranger = replace(callee.server.address, secret=bytes(channel.SECRET_BYTES))
    with pytest.raises(InstanceLost):
        CallLink(stranger).ask("note", 5.0, 1)
    assert callee.told == []


def test_what_is_told_arrives_in_order_without_an_answer(callee: Callee) -> None:
    link = CallLink(callee.server.address)
    assert all(link.tell("note", 5.0, number) for number in range(100))
    assert link.ask("twice", 5.0, 1) == 2  # on the same connection, after them
    assert callee.told == [*range(100), 1]


def test_telling_who_does_not_read_never_waits_long_and_says_when_it_is_full() -> None:
    listener, address = channel.listen("127.0.0.1")
    link = CallLink(address)
    with listener:
        link.open(5.0)
        connection = listener.accept()[0]
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        with connection, contextlib.suppress(InstanceLost):  # the last one had begun
            while link.tell("note", 0.2, bytes(1000)):
                pass


def test_a_message_that_is_taken_only_in_part_does_not_wait_long_for_the_rest() -> None:
    listener, address = channel.listen("127.0.0.1")
    with listener, pytest.raises(InstanceLost):
        CallLink(address).tell("note", 0.2, bytes(1 << 26))


def test_telling_notices_at_once_that_the_other_side_has_gone() -> None:
    listener, address = channel.listen("127.0.0.1")
    link = CallLink(address)
    link.open(5.0)
    connection: socket.socket = listener.accept()[0]
    assert channel.let_in(connection, address)
    connection.close()  # in good order, so that sending would not fail yet
    with listener, pytest.raises(InstanceLost):
        link.tell("note", 5.0, 1)


def test_somebody_who_is_gone_is_noticed_when_called() -> None:
    listener, address = channel.listen("127.0.0.1")
    listener.close()
    with pytest.raises(InstanceLost):
        CallLink(address).ask("note", 1.0, 1)


def test_somebody_who_dies_under_way_is_noticed() -> None:
    listener, address = channel.listen("127.0.0.1")
    link = CallLink(address)
    link.open(5.0)
    connection: socket.socket = listener.accept()[0]
    threading.Timer(0.1, connection.close).start()
    with listener, pytest.raises(InstanceLost):
        link.ask("note", 5.0, 1)


def test_a_link_that_was_closed_keeps_no_connection_of_a_call_under_way(callee: Callee) -> None:
    callee.may_answer.clear()
    link = CallLink(callee.server.address)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(link.ask, "twice", 10.0, 4)
        while not callee.told:
            time.sleep(0.01)
        link.close()
        callee.may_answer.set()
        assert answer.result() == 8
    assert link._idle == []


class UnsendableError(RuntimeError):
    """An error that can be sent but whose raising gives one that cannot."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unsendable, ()


def _unsendable() -> Exception:
    error = RuntimeError()
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    return error
