"""News over a socket: complete and in order, bounded in number, and never a reason for the sender to wait."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.cluster.real import news_socket
from llumnix.cluster.real.messages import Chunk, InstanceLost, News, NoAnswer, Notice
from llumnix.cluster.real.news_socket import NewsClient, NewsServer, decode, encode
from llumnix.cluster.real.outbox import Outbox


class Instance:
    """An outbox and its server; time stands still unless the test moves it."""

    def __init__(self, gather_s: float = 0.005, silence_s: float = 1e9) -> None:
        self.now_s = 1000.0
        self.outbox = Outbox()
        self.numbers = itertools.count()
        self.server = NewsServer(
            self.news, "127.0.0.1", gather_s=gather_s, silence_s=silence_s, clock=lambda: self.now_s
        )

    def news(self, arrived: int, sent: int) -> News:
        self.outbox.drop(arrived)
        last, items = self.outbox.after(sent)
        return News("me", last, items)

    def put(self, size: int = 1) -> None:
        self.outbox.put([Chunk("r", 0, next(self.numbers), tuple(range(size)))])

    def client(self) -> NewsClient:
        """Connect, and wait until the server has let us in."""
        before = self.server._connection
        client = NewsClient(self.server.address, 5.0)
        end_s = time.monotonic() + 5.0
        while self.server._connection is before:
            assert time.monotonic() < end_s
            time.sleep(0.001)
        return client


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    monkeypatch.setattr(news_socket, "TICK_S", 60.0)  # only the test pushes
    made = Instance()
    yield made
    made.server.close()


def indices(news: News) -> list[int]:
    return [item.first_index for item in news.items if isinstance(item, Chunk)]


def test_every_item_comes_once_and_in_order_and_is_then_forgotten(instance: Instance) -> None:
    client, last, got = instance.client(), 0, []
    for _ in range(20):
        instance.put()
        instance.put()
        instance.server.push(at_once=True)
        news = client.poll(last, 5.0)
        last = news.last
        got += indices(news)
    assert got == list(range(40))
    assert len(instance.outbox.after(0)[1]) <= 4  # all but what was acknowledged last


def test_a_new_connection_gets_what_the_old_one_had_not_acknowledged(instance: Instance) -> None:
    client = instance.client()
    instance.put()
    instance.server.push(at_once=True)
    assert indices(client.poll(0, 5.0)) == [0]  # and is lost with its reader, before the next poll
    instance.put()
    instance.server.push(at_once=True)
    client = instance.client()
    instance.server.push(at_once=True)
    assert indices(client.poll(0, 5.0)) == [0, 1]


def test_messages_are_at_least_gather_s_apart_however_fast_the_steps(instance: Instance) -> None:
    client, last, messages, got = instance.client(), 0, 0, []
    for _ in range(2000):
        instance.now_s += 0.0001
        instance.put()
        before = instance.server._sent
        instance.server.push()
        if instance.server._sent != before:
            news = client.poll(last, 5.0)
            last, messages = news.last, messages + 1
            got += indices(news)
    assert 20 < messages <= 0.2 / 0.005 + 1
    assert got == list(range(last))


def test_what_no_step_sends_is_sent_a_tick_later() -> None:
    instance = Instance()
    client = instance.client()
    instance.server._sent_s = instance.now_s
    instance.put()
    instance.server.push()  # too soon
    assert instance.server._sent == 0
    instance.now_s += 0.006
    assert indices(client.poll(0, 5.0)) == [0]
    instance.server.close()


def test_an_instance_with_nothing_to_tell_says_so() -> None:
    instance = Instance(silence_s=1.0)
    client = instance.client()
    assert client.poll(0, 5.0).items == []
    with pytest.raises(NoAnswer):
        client.poll(0, 0.2)
    instance.server.close()


def test_a_reader_that_does_not_read_keeps_nobody_waiting_and_misses_nothing(instance: Instance) -> None:
    client, last, got = instance.client(), 0, []
    started_s = time.monotonic()
    for _ in range(200):
        instance.put(size=20_000)
        instance.server.push(at_once=True)
    assert instance.server._unsent  # more than the socket takes
    assert time.monotonic() - started_s < 5.0
    reading = threading.Event()

    def keep_pushing() -> None:
        while not reading.wait(0.001):
            instance.server.push(at_once=True)

    pusher = threading.Thread(target=keep_pushing)
    pusher.start()
    while len(got) < 200:
        news = client.poll(last, 5.0)
        last = news.last
        got += indices(news)
    reading.set()
    pusher.join()
    assert got == list(range(200))


def test_without_the_secret_there_is_no_news(instance: Instance) -> None:
    address = instance.server.address
    with socket.create_connection((address.host, address.port), 5.0) as stranger:
        stranger.sendall(bytes(len(address.secret)))
        assert stranger.recv(1) == b""
    assert instance.server._connection is None


def test_a_server_that_is_gone_is_lost(instance: Instance) -> None:
    client = instance.client()
    instance.server.close()
    with pytest.raises(InstanceLost):
        client.poll(0, 5.0)
    with pytest.raises(InstanceLost):
        NewsClient(instance.server.address, 5.0)


def test_numbers_go_on_when_an_outbox_is_cleared() -> None:
    outbox = Outbox()
    outbox.put([Notice(0.0, "old", 0)] * 3)
    outbox.clear()
    outbox.put([Notice(0.0, "new", 0)])
    outbox.drop(3)  # a late word about the old ones
    assert outbox.after(0) == (4, [Notice(0.0, "new", 0)])


CHUNKS = st.builds(
    Chunk,
    request_id=st.text(max_size=5),
    attempt=st.integers(0, 3),
    first_index=st.integers(0, 9999),
    tokens=st.lists(st.integers(0, 200_000), max_size=4).map(tuple),
    finish_reason=st.sampled_from([None, "stop", "length"]),
    exec_s=st.floats(0, 10),
    step_s=st.floats(0, 10),
    extra=st.sampled_from([None, {"logprobs": [0.5]}]),
)


@given(st.lists(CHUNKS | st.just(Notice(1.5, "preempt", 0, "r")), max_size=6), st.integers(0, 10**12))
def test_news_read_as_they_were_written(items: list[Chunk | Notice], last: int) -> None:
    news = News("me", last, list(items), 0.25)
    assert decode(encode(news)) == news
    assert [type(item) for item in decode(encode(news)).items] == [type(item) for item in items]
