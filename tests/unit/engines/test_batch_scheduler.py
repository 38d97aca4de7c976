"""The token-by-token scheduler against the simulator in closed form, and what must hold after every step."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llumnix.cluster.spec import ClusterSpec
from llumnix.cluster.stub.cluster import PerInstanceCluster
from llumnix.cluster.stub.process import Reply
from llumnix.cluster.stub.programs import GlobalScheduling, Message
from llumnix.cluster.virtual import simulate
from llumnix.engines.sim.cost import PS_PER_S, CostModel, StepCost
from llumnix.engines.sim.spec import SimEngine
from llumnix.engines.stub.batch import BatchScheduler
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.spec import Scheduler
from llumnix.request import Workload

BLOCKS = 24
SPEC = ClusterSpec(instances=1, block_size_tokens=4, kv_blocks=BLOCKS, max_num_seqs=6, max_num_batched_tokens=64)
COST = CostModel(
    StepCost(
        decode_base_ms=20, decode_per_request_ms=1, decode_per_token_ms=0.1, prefill_per_token_ms=0.5, step_gap_ms=2
    ),
    1,
)
SCHEDULER = Scheduler(dispatch=DispatchRule.round_robin)
REQUESTS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 30), st.integers(1, 40)), min_size=1, max_size=12)


def workload(requests: list[tuple[int, int, int]]) -> Workload:
    gaps_ms, prompts, outputs = (np.array(column) for column in zip(*requests, strict=True))
    arrival_s = (np.cumsum(gaps_ms + 0.0137) - gaps_ms[0]) / 1000  # never at the end of a step, where order is open
    return Workload(arrival_s, prompts, outputs, np.zeros(len(prompts), dtype=np.int64), label="test")


@dataclass
class AtNoCost:
    """A scheduler in this process that takes no time."""

    program: GlobalScheduling

    def ask(self, message: Message) -> Reply:
        return Reply(self.program.handle(message), 0, 0)


@settings(max_examples=150, deadline=None)
@given(REQUESTS)
def test_without_the_time_of_scheduling_it_is_the_simulator(requests: list[tuple[int, int, int]]) -> None:
    sent = workload(requests)
    served = PerInstanceCluster(
        sent, SPEC, COST, AtNoCost(GlobalScheduling(SCHEDULER, SPEC, BLOCKS)), None, BLOCKS, clock=lambda: 0
    )
    served.run()
    expected = simulate(sent, SPEC, SimEngine(), COST, SCHEDULER, uniform=random.random).requests
    assert [r.first_token_ps / PS_PER_S for r in served.requests] == list(expected["first_token_s"])
    assert [r.last_token_ps / PS_PER_S for r in served.requests] == list(expected["end_s"])
    assert [r.exec_ps / PS_PER_S for r in served.requests] == list(expected["exec_s"])
    assert [r.longest_gap_ps / PS_PER_S for r in served.requests if r.output_tokens > 1] == [
        gap for gap, r in zip(expected["max_token_gap_s"], served.requests, strict=True) if r.output_tokens > 1
    ]
    assert [r.prefills - 1 for r in served.requests] == expected["preemptions"].tolist()
    assert served.timings.stall_ps == [0] * len(served.timings.stall_ps)


def test_the_comparison_reaches_preemption() -> None:
    sent = workload([(0, 16, 40), (1, 16, 40), (1, 16, 40)])
    assert sum(simulate(sent, SPEC, SimEngine(), COST, SCHEDULER, uniform=random.random).requests["preemptions"]) > 0


@settings(max_examples=60, deadline=None)
@given(REQUESTS)
def test_blocks_are_conserved_and_belong_to_one_request(requests: list[tuple[int, int, int]]) -> None:
    batch = BatchScheduler(0, SPEC, BLOCKS)
    for request_id, (_, prompt, output) in enumerate(requests):
        batch.add(request_id, prompt, output)
    left = {request_id: output for request_id, (_, _, output) in enumerate(requests)}
    plan = batch.next_step(())
    while plan is not None:
        held = [block for row in plan.rows for block in row.blocks]
        assert len(held) == len(set(held))
        assert all(len(row.blocks) * 4 >= row.context_tokens + row.new_tokens for row in plan.rows)
        load = batch.load()
        assert load.free_blocks + len(held) <= BLOCKS
        assert load.running <= SPEC.max_num_seqs
        for row in plan.rows:
            left[row.request_id] -= 1
        plan = batch.next_step([(row.request_id, 0) for row in plan.rows])
    assert set(left.values()) == {0}
    load = batch.load()
    assert (load.free_blocks, load.running, load.waiting, load.waiting_tokens, load.preempted) == (BLOCKS, 0, 0, 0, 0)


@pytest.mark.parametrize("waiting", [0, 3])
def test_the_report_counts_what_waits(waiting: int) -> None:
    batch = BatchScheduler(0, SPEC, BLOCKS)
    for request_id in range(waiting):
        batch.add(request_id, 10 + request_id, 5)
    load = batch.load()
    assert (load.waiting, load.waiting_tokens, load.head_tokens) == (
        waiting,
        33 if waiting else 0,
        10 if waiting else 0,
    )
