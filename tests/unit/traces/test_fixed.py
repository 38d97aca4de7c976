"""Requests that are all alike."""

from __future__ import annotations

import pytest

from llumnix.errors import ConfigError
from llumnix.traces import FixedTrace
from runners.config import times


def test_every_request_is_what_was_set() -> None:
    trace = FixedTrace(name="fixed", prompt_tokens=7, output_tokens=3)
    lengths = trace.draw(4, trace.streams(0))
    assert (lengths.prompt_tokens.tolist(), lengths.output_tokens.tolist(), lengths.rows_in) == ([7] * 4, [3] * 4, 4)


@pytest.mark.parametrize("key", ["prompt_tokens", "output_tokens"])
def test_a_length_below_one_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        FixedTrace(**{"name": "fixed", "prompt_tokens": 1, "output_tokens": 1, key: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(("a", "b", "product"), [(64, 5, 320), (1.5, 2, 3), (0.5, 3, 1.5)])
def test_times_keeps_whole_numbers_whole(a: float, b: float, product: float) -> None:
    assert times(a, b) == product
    assert type(times(a, b)) is type(product)
