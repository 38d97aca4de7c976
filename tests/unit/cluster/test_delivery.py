"""Chunks in any order, twice, overlapping, from earlier attempts: the client gets each token once and in order."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from llumnix.cluster.real.delivery import Delivery
from llumnix.cluster.real.messages import Chunk


def chunk(first: int, *tokens: int, attempt: int = 0, finish: str | None = None) -> Chunk:
    return Chunk("r", attempt, first, tokens, finish)


def accepted(delivery: Delivery, *chunks: Chunk) -> list[int]:
    return [token for one in chunks for given_ in delivery.accept(one) for token in given_.tokens]


def test_early_chunks_wait_and_known_tokens_are_cut_off() -> None:
    delivery = Delivery()
    assert accepted(delivery, chunk(2, 12, 13)) == []
    assert accepted(delivery, chunk(0, 10, 11)) == [10, 11, 12, 13]
    assert accepted(delivery, chunk(3, 13, 14)) == [14]
    assert accepted(delivery, chunk(0, 10, 11)) == []


def test_an_end_without_tokens_comes_after_all_tokens() -> None:
    delivery = Delivery()
    accepted(delivery, chunk(2, finish="stop"))
    assert delivery.finish_reason is None
    assert accepted(delivery, chunk(0, 10, 11)) == [10, 11]
    assert delivery.finish_reason == "stop"


def test_an_end_that_does_not_fit_what_was_delivered_is_not_one() -> None:
    delivery = Delivery()
    accepted(delivery, chunk(0, 10, 11, 12), chunk(1, finish="stop"))
    assert delivery.finish_reason is None


def test_an_earlier_attempt_is_not_heard_any_more() -> None:
    delivery = Delivery()
    accepted(delivery, chunk(0, 10), chunk(2, 99))
    delivery.replay(1)
    assert accepted(delivery, chunk(1, 98)) == []
    assert accepted(delivery, chunk(1, 11, 12, attempt=1)) == [11, 12]


@given(st.integers(1, 30), st.randoms(use_true_random=False))
def test_every_order_and_repetition_gives_the_stream(count: int, rng: random.Random) -> None:
    chunks = []
    for first in range(count):
        last = min(count, first + rng.randint(1, 4))
        chunks.append(chunk(first, *range(first, last), finish="length" if last == count else None))
    chunks = [rng.choice(chunks) for _ in range(20)] + chunks
    rng.shuffle(chunks)
    delivery = Delivery()
    assert accepted(delivery, *chunks) == list(range(count))
    assert delivery.finish_reason == "length"
