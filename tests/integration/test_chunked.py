"""batching=chunked by hand, on the fast instance and on the reference alike.

A token in a step takes 10 ms and nothing else takes time; a block holds four tokens; budgets are small.
"""

from __future__ import annotations

from typing import Any

import pytest
from reference_chunked import ReferenceChunked

from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.chunked import ChunkedInstance
from llumnix.engines.sim.cost import PS_PER_MS, CostModel, StepCost
from llumnix.engines.sim.request import SimRequest
from llumnix.engines.sim.spec import Batching, SimEngine
from llumnix.errors import ConfigError
from llumnix.policies.spec import LoadReports, QueueOrder
from llumnix.request import Priority

COST = CostModel(StepCost(dense_tokens=[1, 2], dense_ms=[10, 20]), 1000)
NORMAL, HIGH = Priority


class Bench:
    """An instance and its clock."""

    def __init__(
        self,
        instance_type: Any,
        *,
        kv_blocks: int = 100,
        queue_order: QueueOrder = QueueOrder.arrival,
        async_scheduling: bool = False,
        prefix_caching: bool = False,
        **limits: float,
    ) -> None:
        self.ends: list[tuple[int, int]] = []
        self.preempted: list[int] = []
        self.now_ps = self.made = 0
        spec = {"instances": 1, "block_size_tokens": 4, "max_num_seqs": 4, "max_num_batched_tokens": 10}
        self.instance = instance_type(
            0,
            ClusterSpec(**(spec | {"watermark_fraction": 0.0} | limits)),
            SimEngine(batching=Batching.chunked, async_scheduling=async_scheduling, prefix_caching=prefix_caching),
            kv_blocks,
            COST,
            queue_order,
            LoadReports.immediate,
            arm=lambda _, end_ps, version: self.ends.append((end_ps, version)),
            touch=lambda _, worse=True: None,
            on_preempted=lambda r: self.preempted.append(r.arrival_order),
            on_frozen=lambda r, now_ps: None,
            on_finished=lambda r: None,
        )

    def enqueue(self, prompt: int, output: int, priority: Priority = NORMAL, at_ms: float | None = None) -> SimRequest:
        if at_ms is not None:
            self.advance(at_ms)
        request = SimRequest(self.made, self.now_ps, prompt, output, priority)
        self.made += 1
        self.instance.enqueue(request, self.now_ps)
        return request

    def advance(self, to_ms: float) -> None:
        """Play all steps that end by then."""
        until_ps = round(to_ms * PS_PER_MS)
        while due := [e for e in self.ends if e[0] <= until_ps]:
            self.now_ps, version = min(due)
            self.ends.remove(min(due))
            if version == self.instance.version:
                self.instance.boundary(self.now_ps)
        self.now_ps = until_ps


def times(*requests: SimRequest) -> list[tuple[float, float]]:
    """Return when each had its first token and its end, in ms."""
    return [((r.first_token_ps or 0) / PS_PER_MS, (r.end_ps or 0) / PS_PER_MS) for r in requests]


@pytest.fixture(params=[ChunkedInstance, ReferenceChunked], ids=["fast", "reference"])
def world(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_prompt_is_computed_in_chunks_of_the_budget_and_its_last_one_yields_a_token(world: Any) -> None:
    bench = Bench(world)
    request = bench.enqueue(25, 3)
    bench.advance(1000)
    assert times(request) == [(250, 270)]  # 10, 10 and 5 tokens; then one and one
    assert request.exec_ps == 270 * PS_PER_MS


def test_decodes_go_on_beside_a_prompt_and_take_of_its_budget(world: Any) -> None:
    bench = Bench(world)
    old = bench.enqueue(5, 4)
    new = bench.enqueue(20, 2, at_ms=40)
    bench.advance(1000)
    # at 50 the first is done with its prompt; steps of 1 + 9, 1 + 9 and 1 + 2 tokens
    assert times(old, new) == [(50, 280), (280, 290)]
    assert old.max_gap_ps == 100 * PS_PER_MS


def test_what_a_prompt_leaves_of_the_budget_goes_to_the_next_in_the_queue(world: Any) -> None:
    bench = Bench(world)
    bench.enqueue(1, 1)
    one, two, three = (bench.enqueue(n, 1) for n in (6, 7, 3))
    bench.advance(10)
    assert [r.arrival_order for r in bench.instance.waiting] == [3]  # 6 and 4 of the 7 are under way
    bench.advance(1000)
    assert times(one, two, three) == [(110, 110), (170, 170), (170, 170)]


def test_a_request_is_admitted_only_where_all_of_its_prompt_fits_but_takes_what_its_chunk_needs(world: Any) -> None:
    bench = Bench(world, kv_blocks=8)
    bench.enqueue(12, 9)
    bench.enqueue(24, 1)  # six blocks: five are free when the first has its three
    bench.advance(125)
    assert (len(bench.instance.waiting), bench.instance.present_load(bench.now_ps).free_blocks) == (1, 4)
    alone = Bench(world, kv_blocks=8)
    alone.enqueue(24, 1)
    assert alone.instance.present_load(0).free_blocks == 5  # of ten tokens


def test_the_watermark_holds_only_beside_others(world: Any) -> None:
    bench = Bench(world, kv_blocks=10, watermark_fraction=0.5)
    first = bench.enqueue(40, 1)
    assert bench.instance.fits(40, 1)
    assert not bench.instance.fits(40, 2)
    bench.advance(1000)
    assert first.status == "finished"
    bench.enqueue(4, 20)
    bench.enqueue(20, 1)  # five of nine blocks would leave four
    bench.advance(1050)
    assert len(bench.instance.waiting) == 1


def test_no_more_than_max_num_seqs_run(world: Any) -> None:
    bench = Bench(world, max_num_seqs=2)
    for _ in range(3):
        bench.enqueue(2, 9)
    bench.advance(45)
    assert len(bench.instance.waiting) == 1


# --- preemption


def test_the_last_is_preempted_when_a_block_is_missing(world: Any) -> None:
    bench = Bench(world, kv_blocks=3)
    one, two = bench.enqueue(4, 6), bench.enqueue(4, 6)
    bench.advance(89)  # the first has taken the third block for its fifth token; at 90 the second needs one
    assert bench.preempted == []
    bench.advance(90)
    assert bench.preempted == [1]
    small = bench.enqueue(1, 1, at_ms=95)  # would fit, but comes behind
    assert [r.arrival_order for r in bench.instance.waiting] == [1, 2]
    bench.advance(1000)
    assert times(one, two, small) == [(40, 130), (90, 230), (190, 190)]
    assert (two.preemptions, two.max_gap_ps) == (1, 100 * PS_PER_MS)


def test_nobody_is_admitted_in_a_step_that_preempts(world: Any) -> None:
    bench = Bench(world, kv_blocks=3, queue_order=QueueOrder.front)
    bench.enqueue(4, 6)
    bench.enqueue(4, 6)
    urgent = bench.enqueue(1, 1, HIGH, at_ms=60)
    bench.advance(1000)
    assert bench.preempted == [1]
    assert times(urgent) == [(120, 120)]  # of two tokens, from 100 on; the step from 90 to 100 has one


def test_a_request_with_room_in_its_last_block_needs_none(world: Any) -> None:
    bench = Bench(world, kv_blocks=2)
    one, two = bench.enqueue(2, 3), bench.enqueue(2, 3)
    bench.advance(1000)
    assert bench.preempted == []
    assert times(one, two) == [(20, 70), (50, 80)]


def test_a_prompt_under_way_gives_way_to_decodes(world: Any) -> None:
    bench = Bench(world, kv_blocks=11)
    old = bench.enqueue(8, 8)
    new = bench.enqueue(
        30, 1, at_ms=80
    )  # 9 tokens in each of three steps; in the fourth the last block goes to the old
    bench.advance(389)
    assert bench.preempted == []
    bench.advance(1000)
    assert bench.preempted == [1]
    assert times(old, new) == [(80, 420), (720, 720)]
    assert new.preemption_loss_ps == (720 - 390 - 80) * PS_PER_MS  # less a decode step of eight


@pytest.mark.parametrize(("order", "victim"), [(QueueOrder.front, 0), (QueueOrder.arrival, 1)])
def test_with_priorities_the_lowest_class_gives_way(world: Any, order: QueueOrder, victim: int) -> None:
    bench = Bench(world, kv_blocks=3, queue_order=order)
    bench.enqueue(4, 6)
    bench.enqueue(4, 6, HIGH)
    bench.advance(90)
    assert bench.preempted == [victim]


@pytest.mark.parametrize(
    ("output", "prefix_caching", "end_ms"),
    [
        (5, True, 210),  # all three blocks are left, and one token to compute
        (7, True, 270),  # the first request has taken one more block, the last of the second
        (5, False, 330),
    ],
)
def test_a_preempted_request_begins_behind_what_is_left_of_its_blocks(
    world: Any, output: int, prefix_caching: bool, end_ms: float
) -> None:
    bench = Bench(world, kv_blocks=5, prefix_caching=prefix_caching)
    bench.enqueue(4, output)
    two = bench.enqueue(12, 2)
    bench.advance(180)
    assert bench.preempted == [1]
    bench.advance(1000)
    assert times(two) == [(180, end_ms)]


# --- plans that are made a step ahead


@pytest.mark.parametrize(("async_scheduling", "first_ms"), [(False, 90), (True, 100)])
def test_a_plan_does_not_know_who_came_during_the_step_before(
    world: Any, async_scheduling: bool, first_ms: float
) -> None:
    bench = Bench(world, async_scheduling=async_scheduling)
    bench.enqueue(5, 20)
    new = bench.enqueue(3, 2, at_ms=45)  # in the first step; the next one, from 50 on, is planned already
    bench.advance(1000)
    assert times(new)[0][0] == first_ms


def test_the_place_of_one_that_ends_is_free_a_step_later(world: Any) -> None:
    bench = Bench(world, async_scheduling=True, max_num_seqs=2)
    bench.enqueue(1, 2)
    bench.enqueue(1, 20)
    new = bench.enqueue(1, 1)
    bench.advance(1000)
    assert times(new) == [(50, 50)]  # with the first one's place at 20, when it ends, it would be 40


def test_an_idle_engine_plans_at_once(world: Any) -> None:
    bench = Bench(world, async_scheduling=True, max_num_seqs=1)
    bench.enqueue(3, 1)
    waiting = bench.enqueue(3, 1, at_ms=5)  # when the first has ended nothing is under way
    late = bench.enqueue(3, 1, at_ms=100)
    bench.advance(1000)
    assert times(waiting, late) == [(60, 60), (130, 130)]


def test_a_budget_that_running_requests_could_use_up_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens=4 must be more than cluster.max_num_seqs=4"):
        Bench(ChunkedInstance, max_num_batched_tokens=4)
