"""The best instances, found from bounds: the same as by sorting all of them, while few are looked at."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from llumnix.load import InstanceLoad
from llumnix.scheduler import Ranking

EMPTY = InstanceLoad(0, 1, 0, 0, 0, 0, 100, 0, 16, 0, 0)


class Falling:
    """Reports whose free blocks a test sets; `looks` counts how often any of them was looked at."""

    def __init__(self, free_blocks: list[int]) -> None:
        self.loads = {i: replace(EMPTY, instance_id=i, free_blocks=free) for i, free in enumerate(free_blocks)}
        self.looks = 0

    def latest(self, instance_id: int) -> InstanceLoad:
        self.looks += 1
        return self.loads[instance_id]

    def outlook(self, instance_id: int) -> tuple[InstanceLoad, InstanceLoad]:
        self.looks += 1
        return self.loads[instance_id], self.loads[instance_id]

    def earliest_loss(self, instance_id: int, blocks: float) -> float:
        return math.inf

    def set(self, instance_id: int, free_blocks: int) -> None:
        self.loads[instance_id].free_blocks = free_blocks


def room(load: InstanceLoad) -> float:
    """Free blocks; none below 10."""
    return load.free_blocks if load.free_blocks >= 10 else -math.inf


CHANGES = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 30)), max_size=6)


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 30), min_size=12, max_size=12),
    st.lists(st.tuples(CHANGES, st.integers(0, 14)), max_size=8),
    st.booleans(),
)
def test_the_best_are_those_of_sorting_all(
    free_blocks: list[int], queries: list[tuple[list[tuple[int, int]], int]], last_first: bool
) -> None:
    reports = Falling(free_blocks)
    ranking = Ranking(range(12), reports, room, last_first=last_first)
    sign = -1 if last_first else 1
    for changes, count in queries:
        for instance_id, free in changes:
            if free > reports.loads[instance_id].free_blocks:  # a fall is found without being told
                ranking.touched.add(instance_id)
            reports.set(instance_id, free)
        ranked = sorted(range(12), key=lambda i: (-reports.loads[i].free_blocks, sign * i))
        wanted = [i for i in ranked if reports.loads[i].free_blocks >= 10][:count]
        assert ranking.best_of_all(count) == wanted
        if wanted:
            assert ranking.best() == wanted[0]


def test_instances_that_are_gone_are_not_among_the_best() -> None:
    ranking = Ranking(range(4), Falling([10, 40, 30, 20]), room, last_first=False)
    assert ranking.best_of_all(2) == [1, 2]
    ranking.forget(1)
    assert ranking.best_of_all(9) == [2, 3, 0]


def test_the_best_few_of_many_are_found_without_a_look_at_the_others() -> None:
    reports = Falling(list(range(10, 1010)))
    ranking = Ranking(range(1000), reports, room, last_first=False)
    assert ranking.best_of_all(3) == [999, 998, 997]
    reports.looks = 0
    for _ in range(10):
        ranking.best_of_all(3)
    assert reports.looks == 30


def test_what_is_settled_is_not_valued_again_by_a_dispatch() -> None:
    reports = Falling([10, 40, 30])
    ranking = Ranking(range(3), reports, room)
    assert ranking.best() == 1
    reports.set(2, 50)
    ranking.touched.add(2)
    ranking.settle()
    reports.looks = 0
    assert ranking.best() == 2
    assert reports.looks == 1  # at the best itself
