"""One instance by hand, the fast one and the reference alike; a step takes 50 ms, a block holds one token."""

from __future__ import annotations

from typing import Any

import pytest
from reference import ReferenceInstance

from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.cost import PS_PER_MS, CostModel, StepCost
from llumnix.engines.sim.prefill_first import PrefillFirstInstance
from llumnix.engines.sim.request import SimRequest
from llumnix.engines.sim.spec import SimEngine
from llumnix.policies.spec import LoadReports, QueueOrder
from llumnix.request import Priority

COST = CostModel(StepCost(step_gap_ms=5, decode_base_ms=45, prefill_floor_ms=45), 1000)
NORMAL, HIGH = Priority


class Bench:
    """An instance and its clock."""

    def __init__(
        self,
        instance_type: Any,
        *,
        kv_blocks: int = 100,
        queue_order: QueueOrder = QueueOrder.front,
        load_reports: LoadReports = LoadReports.completed_step,
        **limits: float,
    ) -> None:
        self.ends: list[tuple[int, int]] = []
        self.preempted: list[int] = []
        self.finished: dict[int, int] = {}
        self.made = 0
        self.now_ps = 0
        self.instance = instance_type(
            0,
            ClusterSpec(**({"instances": 1, "block_size_tokens": 1} | limits)),
            SimEngine(),
            kv_blocks,
            COST,
            queue_order,
            load_reports,
            arm=lambda _, end_ps, version: self.ends.append((end_ps, version)),
            touch=lambda _, worse=True: None,
            on_preempted=lambda r: self.preempted.append(r.arrival_order),
            on_frozen=lambda r, now_ps: None,
            on_finished=lambda r: self.finished.update({r.arrival_order: self.now_ps}),
        )

    def enqueue(self, prompt: int, output: int, priority: Priority = NORMAL) -> SimRequest:
        request = SimRequest(self.made, self.now_ps, prompt, output, priority)
        self.made += 1
        self.instance.enqueue(request, self.now_ps)
        return request

    def advance(self, to_ms: float, *, through: bool = False) -> None:
        """Play all steps that end before `to_ms`, or `through` those that end then, too."""
        until_ps = round(to_ms * PS_PER_MS)
        while due := [e for e in self.ends if e[0] < until_ps or (through and e[0] == until_ps)]:
            self.now_ps, version = min(due)
            self.ends.remove(min(due))
            if version == self.instance.version:
                self.instance.boundary(self.now_ps)
        self.now_ps = until_ps

    def waiting(self) -> list[int]:
        return [r.arrival_order for r in self.instance.waiting]


@pytest.fixture(params=[PrefillFirstInstance, ReferenceInstance], ids=["fast", "reference"])
def world(request: pytest.FixtureRequest) -> Any:
    return request.param


# --- reports


def test_a_report_shows_how_a_step_began_and_is_visible_only_after_its_end(world: Any) -> None:
    bench = Bench(world)
    bench.enqueue(10, 50)
    seen = {}
    for now_ms in (0, 1, 50, 50.001, 100, 100.001, 149, 150, 150.001, 1000, 1000.001):
        bench.advance(now_ms)
        seen[now_ms] = bench.instance.latest(bench.now_ps).free_blocks
    # the prompt's step ends at 50 ms and began with 90 free; decode step k ends at 50 + 50 k ms, began with 90 - k
    assert seen == {
        0: 100, 1: 100, 50: 100, 50.001: 90, 100: 90, 100.001: 89, 149: 89, 150: 89, 150.001: 88, 1000: 72, 1000.001: 71
    }  # fmt: skip


def test_an_immediate_report_includes_the_step_under_way(world: Any) -> None:
    bench = Bench(world, load_reports=LoadReports.immediate)
    assert bench.instance.latest(0).running == 0
    bench.enqueue(10, 50)
    seen = []
    for now_ms in (0, 50.001, 100, 100.001, 1000, 1000.001):
        bench.advance(now_ms)
        seen.append(bench.instance.latest(bench.now_ps).free_blocks)
    assert seen == [90, 89, 89, 88, 71, 70]


def test_a_report_counts_what_waits_when_the_step_begins(world: Any) -> None:
    bench = Bench(world, max_num_seqs=1)
    bench.enqueue(10, 50)
    bench.advance(60)
    bench.enqueue(7, 5)
    bench.enqueue(30, 5, HIGH)
    bench.advance(120)
    first = bench.instance.latest(bench.now_ps)  # of the step from 50 to 100 ms
    assert (first.running, first.waiting, first.waiting_tokens, first.head_tokens, first.high_priority) == (
        1,
        0,
        0,
        0,
        0,
    )
    bench.advance(151)
    then = bench.instance.latest(bench.now_ps)
    assert (then.running, then.waiting, then.waiting_tokens, then.head_tokens, then.high_priority) == (1, 2, 37, 30, 1)


def test_an_instance_that_has_become_idle_goes_on_showing_its_last_step(world: Any) -> None:
    bench = Bench(world)
    bench.enqueue(10, 3)
    bench.advance(5000)
    report = bench.instance.latest(bench.now_ps)
    assert (report.running, report.free_blocks) == (1, 88)
    assert bench.instance.free_blocks == 100


# --- memory and places


def test_admission_leaves_the_watermark_free(world: Any) -> None:
    bench = Bench(world, kv_blocks=100, watermark_fraction=0.1)
    bench.enqueue(50, 5)
    bench.enqueue(41, 5)
    bench.enqueue(1, 1)  # would fit, but it is not its turn
    bench.advance(51)
    assert bench.waiting() == [1, 2]
    fits = Bench(world, kv_blocks=100, watermark_fraction=0.1)
    fits.enqueue(90, 1)
    assert fits.waiting() == []


def test_a_prefill_step_keeps_to_the_token_budget_but_takes_at_least_one(world: Any) -> None:
    bench = Bench(world, max_num_batched_tokens=20)
    bench.enqueue(1, 1)
    for prompt in (10, 10, 1, 20):
        bench.enqueue(prompt, 30)
    waiting = [bench.waiting()]
    for end_ms in (50, 100, 150):
        bench.advance(end_ms, through=True)
        waiting.append(bench.waiting())
    assert waiting == [[1, 2, 3, 4], [3, 4], [4], []]


def test_prompts_go_before_decodes(world: Any) -> None:
    bench = Bench(world)
    old = bench.enqueue(10, 4)
    bench.advance(60)  # in its first decode step
    new = bench.enqueue(10, 4)
    bench.advance(10_000)
    assert new.first_token_ps == 150 * PS_PER_MS
    assert old.end_ps == (50 + 50 + 50 + 2 * 50) * PS_PER_MS
    assert old.max_gap_ps == 100 * PS_PER_MS
    assert old.exec_ps == 4 * 45 * PS_PER_MS  # its own steps, without the gaps between them


def test_reservations_take_blocks_down_to_the_watermark(world: Any) -> None:
    bench = Bench(world, watermark_fraction=0.1)
    assert not bench.instance.reserve(91, 0, seat=True)
    assert bench.instance.inbound == 0
    assert bench.instance.reserve(90, 0, seat=True)
    assert not bench.instance.reserve(1, 0, seat=False)
    bench.instance.cancel(90, 0)
    assert (bench.instance.free_blocks, bench.instance.inbound) == (100, 0)


def test_a_reservation_counts_what_the_step_under_way_takes(world: Any) -> None:
    for blocks, room in ((89, True), (90, False)):
        bench = Bench(world, watermark_fraction=0.0)
        bench.enqueue(10, 50)
        bench.advance(51)  # in the first decode step, with 11 tokens
        assert bench.instance.reserve(blocks, bench.now_ps, seat=True) is room


def test_a_request_on_its_way_has_a_place(world: Any) -> None:
    bench = Bench(world, max_num_seqs=2)
    assert bench.instance.reserve(5, 0, seat=True)
    bench.enqueue(10, 50)
    bench.enqueue(10, 50)
    assert not bench.instance.reserve(5, 0, seat=True)
    assert bench.instance.reserve(5, 0, seat=False)  # the same one's next stage
    bench.advance(1000)
    assert bench.waiting() == [1]
    bench.instance.cancel(10, bench.now_ps)
    bench.advance(1051)
    assert bench.waiting() == []


# --- preemption


def test_the_youngest_is_preempted_and_waits_in_front(world: Any) -> None:
    bench = Bench(world, kv_blocks=40, watermark_fraction=0.25, max_num_seqs=2)
    for _ in range(3):
        bench.enqueue(15, 20)
    # the first decodes alone for a step, both from 150 ms on; the fifth step of both finds one block less than it needs
    bench.advance(100, through=True)
    assert (bench.waiting(), bench.preempted) == ([2], [])
    bench.advance(100 + 5 * 50, through=True)
    assert (bench.waiting(), bench.preempted) == ([1, 2], [1])
    assert bench.instance.latest(bench.now_ps).preempted == 0  # not in a completed step yet
    bench.advance(100 + 6 * 50 + 1)
    assert bench.instance.latest(bench.now_ps).preempted == 1
    bench.advance(100_000)
    assert sorted(bench.finished, key=bench.finished.get) == [0, 1, 2]


def test_a_free_block_is_needed_even_by_a_request_with_room_in_its_last_one(world: Any) -> None:
    """Two requests of 5 tokens in blocks of 4: 4 of 4 blocks are taken, both have room in theirs."""
    tight, roomy = (
        Bench(world, kv_blocks=blocks, block_size_tokens=4, watermark_fraction=0.0, max_num_batched_tokens=5)
        for blocks in (4, 5)
    )
    for bench in (tight, roomy):
        bench.enqueue(5, 3)
        bench.enqueue(5, 3)
        bench.advance(100, through=True)
    assert tight.preempted == [1]
    assert roomy.preempted == []


# --- the queue


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (QueueOrder.front, [3, 5, 1, 2, 4]),
        (QueueOrder.second_to_last, [1, 3, 2, 5, 4]),
        (QueueOrder.arrival, [1, 2, 3, 4, 5]),
    ],
)
def test_where_a_high_priority_request_enters_the_queue(order: QueueOrder, expected: list[int], world: Any) -> None:
    bench = Bench(world, queue_order=order, max_num_seqs=1)
    for priority in (NORMAL, NORMAL, NORMAL, HIGH, NORMAL, HIGH):
        bench.enqueue(5, 50, priority)
    assert bench.waiting() == expected
    assert bench.instance.high_priority == 2


def test_a_high_priority_request_enters_an_empty_queue_in_every_order(world: Any) -> None:
    for order in QueueOrder:
        bench = Bench(world, queue_order=order, max_num_seqs=1)
        bench.enqueue(5, 50)
        bench.enqueue(5, 50, HIGH)
        assert bench.waiting() == [1]


@pytest.mark.parametrize(("order", "expected"), [(QueueOrder.front, [3, 1, 2]), (QueueOrder.second_to_last, [1, 3, 2])])
def test_a_preempted_request_waits_before_its_own_class(order: QueueOrder, expected: list[int], world: Any) -> None:
    bench = Bench(world, kv_blocks=40, watermark_fraction=0.25, max_num_seqs=2, queue_order=order)
    for _ in range(3):
        bench.enqueue(15, 20)
    bench.advance(120)  # 0 and 1 decode, 2 waits
    bench.enqueue(15, 20, HIGH)
    bench.advance(350, through=True)
    assert bench.preempted == [1]
    assert bench.waiting() == expected
