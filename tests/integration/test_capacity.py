"""Requests that can never be served, and the largest that can."""

from __future__ import annotations

import random

import numpy as np
import pytest
from cases import Case, examples, workload
from hypothesis import given
from hypothesis import strategies as st

from llumnix.cluster.spec import ClusterSpec
from llumnix.cluster.virtual import VirtualCluster
from llumnix.engines.sim.cost import CostModel, StepCost
from llumnix.engines.sim.prefill_first import PrefillFirstInstance
from llumnix.engines.sim.spec import SimEngine
from llumnix.errors import ConfigError
from llumnix.policies.spec import Scheduler

COST = StepCost(step_gap_ms=5, decode_base_ms=25, prefill_base_ms=10)


def case(*rows: tuple[float, int, int, int], **limits: float) -> Case:
    return Case(workload(list(rows)), ClusterSpec(**limits), COST, Scheduler(), SimEngine())


def test_a_request_beyond_capacity_is_rejected_and_the_others_are_served() -> None:
    """10 blocks of 16: at most 159 tokens, since a step needs a free block at each turn; 100 prompt tokens a step."""
    small, long_prompt, long_output = (0.0, 100, 20, 0), (0.1, 101, 1, 0), (0.2, 100, 100, 0)
    result = case(small, long_prompt, long_output, small, instances=2, kv_blocks=10, max_num_batched_tokens=100).run()
    assert result.requests["status"] == ["finished", "rejected", "rejected", "finished"]
    assert [error is None for error in result.requests["error"]] == [True, False, False, True]
    rejects = [
        (time_s, request)
        for kind, time_s, request in zip(*(result.events[c] for c in ("kind", "time_s", "request_id")), strict=True)
        if kind == "reject"
    ]
    assert rejects == [(0.1, 1), (0.2, 2)]


def test_the_end_of_a_rejected_request_is_the_moment_of_its_rejection() -> None:
    result = case((0.25, 1000, 1, 0), instances=1, kv_blocks=10).run()
    assert result.requests["end_s"][0] == 0.25


def test_a_run_of_nothing_but_rejected_requests_ends() -> None:
    result = case(*[(float(i), 1000, 1, 0) for i in range(5)], instances=1, kv_blocks=10).run()
    assert result.requests["status"] == ["rejected"] * 5
    assert np.isnan(result.requests["first_token_s"]).all()


def test_a_run_without_requests_has_empty_records() -> None:
    result = case(instances=1, kv_blocks=10).run()
    assert {len(column) for table in (result.requests, result.events) for column in table.values()} == {0}


@st.composite
def shapes(draw: st.DrawFn) -> tuple[ClusterSpec, int, int]:
    """Return an instance with a prompt and an output length near the limits of its capacity."""
    spec = ClusterSpec(
        instances=1,
        block_size_tokens=draw(st.sampled_from([1, 4, 16])),
        kv_blocks=draw(st.integers(2, 30)),
        max_num_batched_tokens=draw(st.sampled_from([20, 10_000])),
        watermark_fraction=draw(st.sampled_from([0.0, 0.01, 0.1, 0.4])),
    )
    total = spec.kv_blocks * spec.block_size_tokens + draw(st.integers(-2 * spec.block_size_tokens, 2))
    prompt = draw(st.integers(1, max(1, total)))
    return spec, prompt, max(1, total + 1 - prompt)


@examples(80)
@given(shapes())
def test_what_is_accepted_can_finish_and_what_is_rejected_could_not(shape: tuple[ClusterSpec, int, int]) -> None:
    """Two of a kind: each finishes, if need be while the other waits to be recomputed."""
    spec, prompt, output = shape
    rows = [(0.0, prompt, output, 0), (0.0, prompt, output, 0)]
    result = Case(workload(rows), spec, COST, Scheduler(), SimEngine(sample_period_s=10)).run()
    [status] = set(result.requests["status"])
    watermark = int(spec.watermark_fraction * spec.kv_blocks)
    blocks = -(-(prompt + output - 1) // spec.block_size_tokens)  # the last token is not stored
    if status == "rejected":
        # a decode step needs a free block at the request's turn, a recomputation leaves the watermark free
        assert prompt > spec.max_num_batched_tokens or blocks + max(watermark, 1) >= spec.kv_blocks
    else:
        assert status == "finished"
        assert blocks + watermark < spec.kv_blocks


def test_a_run_in_which_nothing_can_happen_any_more_is_an_error_not_a_hang() -> None:
    class Deaf(PrefillFirstInstance):
        def enqueue(self, request: object, now_ps: int) -> None:
            pass

    for run in (case((0.0, 10, 10, 0), instances=1, kv_blocks=10), case((5.0, 10, 10, 0), instances=2, kv_blocks=10)):
        with pytest.raises(RuntimeError, match="1 requests are left"):
            run.run(Deaf)


def test_blocks_come_from_the_cluster_or_else_from_the_gpu() -> None:
    def total_blocks(kv_blocks: int | None, measured: int) -> int:
        cost = CostModel(StepCost(kv_blocks=measured, decode_base_ms=25), 1)
        spec = ClusterSpec(instances=1, kv_blocks=kv_blocks)
        return (
            VirtualCluster(workload([]), spec, SimEngine(), cost, Scheduler(), random.random).instances[0].total_blocks
        )

    assert total_blocks(None, 783) == 783
    assert total_blocks(10, 783) == 10
    with pytest.raises(ConfigError, match=r"set cluster\.kv_blocks=N"):
        total_blocks(None, 0)
