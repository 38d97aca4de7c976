"""Stalls of the stub cluster: schedulers that take a known time, and real ones in their process."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest

from llumnix.cluster.spec import ClusterSpec
from llumnix.cluster.stub.cluster import CentralizedCluster, PerInstanceCluster
from llumnix.cluster.stub.process import Reply, SchedulerLost, SchedulerProcess
from llumnix.cluster.stub.programs import Arrival, CentralScheduler, GlobalScheduling, Message, Round, StepEnded
from llumnix.cluster.stub.run import serve_stub
from llumnix.engines.sim.cost import PS_PER_MS, CostModel, StepCost
from llumnix.engines.stub.batch import Plan
from llumnix.engines.stub.spec import Scheduling, StubEngine
from llumnix.errors import ConfigError
from llumnix.policies.migration import MigrationPolicy
from llumnix.policies.spec import Scheduler
from llumnix.request import Workload

BLOCKS = 100
COST = CostModel(StepCost(decode_base_ms=50, prefill_base_ms=30), 1)
NS_PER_MS = 10**6


def spec(instances: int) -> ClusterSpec:
    return ClusterSpec(instances=instances, kv_blocks=BLOCKS)


def workload(count: int, output_tokens: int = 5, priority: int = 0) -> Workload:
    tokens = np.full(count, 16, dtype=np.int64)
    classes = np.full(count, priority, dtype=np.int64)
    return Workload(np.zeros(count), tokens, np.full(count, output_tokens), classes, label="test")


@dataclass
class Slow:
    """A scheduler in this process; every message takes it and the asker a fixed time."""

    program: CentralScheduler | GlobalScheduling
    scheduler_ms: float
    asker_ms: float = 0.0
    asked: list[Message] = field(default_factory=list)

    def ask(self, message: Message) -> Reply:
        self.asked.append(message)
        answer = self.program.handle(message)
        return Reply(answer, round(self.scheduler_ms * NS_PER_MS), round(self.asker_ms * NS_PER_MS))


@pytest.mark.parametrize("instances", [1, 4])
def test_a_busy_centralized_scheduler_makes_instances_wait_their_turn(instances: int) -> None:
    """Steps of 50 ms that end at once: the i-th instance waits for i messages of 3 ms each, and for its own 1 ms."""
    program = CentralScheduler(Scheduler(), spec(instances), BLOCKS)
    served = CentralizedCluster(workload(instances, 2), spec(instances), COST, Slow(program, 3.0, 1.0), None)
    served.run()
    last_ended, stalls_ms = served.timings.ended_ps[-1], [ps / PS_PER_MS for ps in served.timings.stall_ps]
    assert last_ended > 0
    assert set(stalls_ms) == {4.0}  # they were started 3 ms apart, and so are served without a queue
    served = CentralizedCluster(workload(instances, 2), spec(instances), COST, Slow(program, 0.0), None)
    served.run()
    assert set(served.timings.stall_ps) == {0}


def test_a_saturated_centralized_scheduler_sets_the_pace() -> None:
    """64 instances that each need 2 ms per iteration leave no iteration shorter than 128 ms, steps of 50 ms or not."""
    program = CentralScheduler(Scheduler(), spec(64), BLOCKS)
    served = CentralizedCluster(workload(64, 30), spec(64), COST, Slow(program, 2.0), None)
    served.run()
    steady = served.timings.stall_ps[640:1280]
    assert np.mean(steady) / PS_PER_MS == pytest.approx(128 - 50, rel=0.02)


def test_nobody_waits_for_the_global_scheduler() -> None:
    program = GlobalScheduling(Scheduler(), spec(64), BLOCKS)
    slow = Slow(program, 2.0, 0.25)
    served = PerInstanceCluster(workload(64, 30), spec(64), COST, slow, None, BLOCKS, clock=lambda: 0)
    served.run()
    assert {ps / PS_PER_MS for ps in served.timings.stall_ps} == {0.25}  # the sending of a report, and nothing else
    assert max(served.timings.dispatch_ps) / PS_PER_MS == pytest.approx(64 * 2.0)


def test_an_instances_own_planning_is_a_stall() -> None:
    ticks = iter(range(10**6))
    program = GlobalScheduling(Scheduler(), spec(1), BLOCKS)
    clock = lambda: next(ticks) * NS_PER_MS  # noqa: E731
    served = PerInstanceCluster(workload(1), spec(1), COST, Slow(program, 0.0), None, BLOCKS, clock=clock)
    served.run()
    assert {ps / PS_PER_MS for ps in served.timings.stall_ps} == {1.0}


def test_requests_spread_over_instances_although_no_report_comes_in_between() -> None:
    program = GlobalScheduling(Scheduler(), spec(8), BLOCKS)
    served = PerInstanceCluster(workload(16), spec(8), COST, Slow(program, 0.0), 0.05, BLOCKS, clock=lambda: 0)
    served.run()
    assert sorted(r.instance_id for r in served.requests) == sorted([*range(8), *range(8)])
    assert len(served.timings.round_ps) > 0


def test_the_process_gives_the_answers_of_the_program_and_takes_time() -> None:
    scheduler = Scheduler(migration=MigrationPolicy(enabled=True))
    here = CentralScheduler(scheduler, spec(2), BLOCKS)
    messages: list[Message] = [
        Arrival(0.0, 0, 16, 3, frozenset({0, 1})),
        Arrival(0.0, 1, 16, 3, frozenset({0})),
        StepEnded(0.1, 1, [(0, 0)]),
    ]
    with SchedulerProcess(CentralScheduler, scheduler, spec(2), BLOCKS) as process:
        replies = [process.ask(message) for message in messages]
    local = [pickle.loads(pickle.dumps(here.handle(message))) for message in messages]  # block tables go on growing
    assert [reply.answer for reply in replies] == local
    assert isinstance(replies[-1].answer, Plan)
    assert all(reply.scheduler_ns > 0 and reply.asker_ns > 0 for reply in replies)


def test_a_scheduler_that_dies_is_one_sentence() -> None:
    with SchedulerProcess(GlobalScheduling, Scheduler(), spec(1), BLOCKS) as process:
        process._child.kill()
        process._child.wait()
        with pytest.raises(SchedulerLost, match="the same command tries again"):
            process.ask(Round(0.0))


@pytest.mark.parametrize("scheduling", list(Scheduling))
def test_a_run_leaves_whole_records_and_its_statistics(scheduling: Scheduling) -> None:
    sent = workload(20, 8)
    result = serve_stub(sent, spec(2), StubEngine(scheduling=scheduling), COST, Scheduler())
    assert set(result.requests["status"]) == {"finished"}
    assert (result.requests["end_s"] > result.requests["first_token_s"]).all()
    assert len(result.events["time_s"]) == 20
    assert result.counters["iterations"] > 0
    assert result.scalars["scheduler_busy_share"] > 0


@pytest.mark.parametrize(
    ("sent", "said"),
    [(workload(2, priority=1), "no priorities"), (workload(1, output_tokens=5000), "does not fit")],
)
def test_what_the_stub_cannot_serve_is_refused(sent: Workload, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        serve_stub(sent, spec(1), StubEngine(), COST, Scheduler())


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="warm_up_s"):
        StubEngine(warm_up_s=-1)
    with pytest.raises(ConfigError, match="record_steps"):
        StubEngine(record_steps=True)
