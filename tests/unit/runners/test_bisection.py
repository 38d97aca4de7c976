"""The search on conditions that cost nothing: it finds the boundary, asks little, and nothing twice."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.bisection import last_that_holds


def search(last: int, start: int, least: int = 1, most: int = 10_000) -> tuple[int | None, list[int]]:
    """Return the answer for "up to `last`", and what was asked on the way."""
    asked: list[int] = []

    def holds(number: int) -> bool:
        asked.append(number)
        return number <= last

    return last_that_holds(holds, start, least, most), asked


def test_it_doubles_until_it_fails_and_halves_the_rest() -> None:
    assert search(21, start=5) == (21, [5, 10, 20, 40, 30, 25, 22, 21])


def test_it_halves_until_it_holds() -> None:
    assert search(3, start=20) == (3, [20, 10, 5, 2, 3, 4])


def test_the_ends_of_the_range() -> None:
    assert search(0, start=4) == (None, [4, 2, 1])
    assert search(99, start=4, most=30) == (30, [4, 8, 16, 30])  # the end of the range is no boundary
    assert search(7, start=7, least=7, most=7) == (7, [7])


@pytest.mark.parametrize("start", [-5, 0, 10**9])
def test_a_start_outside_the_range_begins_at_its_end(start: int) -> None:
    assert search(6, start, most=50)[0] == 6


@given(st.integers(-5, 3000), st.integers(1, 3000), st.integers(1, 50), st.integers(50, 3000))
def test_the_boundary_is_found_with_few_questions(last: int, start: int, least: int, most: int) -> None:
    found, asked = search(last, start, least, most)
    assert found == (None if last < least else min(last, most))
    assert len(asked) == len(set(asked))
    assert all(least <= number <= most for number in asked)
    assert len(asked) <= 2 * math.log2(most) + 3


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 40))
def test_of_a_condition_that_goes_to_and_fro_it_finds_an_edge(answers: list[bool], start: int) -> None:
    found = last_that_holds(lambda number: answers[number - 1], start, 1, len(answers))
    assert found is None or answers[found - 1]
    following = 0 if found is None else found
    assert following == len(answers) or not answers[following]
