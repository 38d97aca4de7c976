"""Landings over a connection of their own: answered once, refused, or broken off without an answer."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from llumnix.cluster.real import channel
from llumnix.cluster.real.landing_link import LandingLink, LandingServer
from llumnix.cluster.real.messages import InstanceLost, Landing, NoAnswer, Tag
from llumnix.engines.base import FinalState

LANDING = Landing("r", Tag(2, 1), 3, 5, [], FinalState("r", (7, 8), 40, (b"state",)), 12.5)


class Destination:
    """Takes landings in the way that `answer` says."""

    def __init__(self) -> None:
        self.landed: list[Landing] = []
        self.answer: bool | Exception = True
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.server = LandingServer(self.land, "127.0.0.1", silence_s=0.5)

    def land(self, landing: Landing) -> bool:
        self.landed.append(landing)
        self.may_answer.wait(10)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def destination() -> Iterator[Destination]:
    made = Destination()
    yield made
    made.may_answer.set()
    made.server.close()


@pytest.mark.parametrize("answer", [True, False])
def test_a_landing_arrives_whole_and_its_answer_comes_back(destination: Destination, answer: bool) -> None:
    destination.answer = answer
    assert LandingLink(destination.server.address, 5.0).land(LANDING, 5.0) is answer
    assert destination.landed == [LANDING]


def test_a_large_landing_arrives_whole(destination: Destination) -> None:
    large = replace(LANDING, final=replace(LANDING.final, sampler=(bytes(range(256)) * 40_000,)))
    assert LandingLink(destination.server.address, 5.0).land(large, 5.0)
    assert destination.landed == [large]


def test_a_landing_that_fails_leaves_its_source_without_an_answer(destination: Destination) -> None:
    destination.answer = RuntimeError("the engine failed")
    with pytest.raises(InstanceLost):
        LandingLink(destination.server.address, 5.0).land(LANDING, 5.0)


def test_a_landing_that_hangs_is_waited_for_as_long_as_said(destination: Destination) -> None:
    destination.may_answer.clear()
    started_s = time.monotonic()
    with pytest.raises(NoAnswer, match=r"0\.2 s"):
        LandingLink(destination.server.address, 5.0).land(LANDING, 0.2)
    assert time.monotonic() - started_s < 5


def test_who_does_not_know_the_secret_lands_nothing(destination: Destination) -> None:
    stranger = replace(destination.server.address, secret=bytes(channel.SECRET_BYTES))
    with pytest.raises(InstanceLost):
        LandingLink(stranger, 5.0).land(LANDING, 5.0)
    assert destination.landed == []


def test_a_connection_without_a_landing_is_closed(destination: Destination) -> None:
    link = LandingLink(destination.server.address, 5.0)
    with pytest.raises(EOFError):
        channel.exactly(link._connection, 1, time.monotonic() + 5.0)


def test_a_destination_that_is_gone_is_noticed_when_the_link_is_made() -> None:
    listener, address = channel.listen("127.0.0.1")
    listener.close()
    with pytest.raises(InstanceLost):
        LandingLink(address, 1.0)


def test_a_destination_that_dies_under_way_is_noticed() -> None:
    listener, address = channel.listen("127.0.0.1")
    link = LandingLink(address, 5.0)
    connection: socket.socket = listener.accept()[0]
    threading.Timer(0.1, connection.close).start()
    with listener, pytest.raises(InstanceLost):
        link.land(LANDING, 5.0)
