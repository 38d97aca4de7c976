"""Control messages are bounded by time, however fast an engine steps."""

from __future__ import annotations

import time

from fake_engine import FakeEngine

from llumnix.cluster.real.llumlet import Llumlet
from llumnix.cluster.real.messages import Submission
from llumnix.cluster.real.spec import Limits
from llumnix.engines.base import EngineRequest, StepResult
from llumnix.load import InstanceLoad

PERIOD_S = 0.05


class FastEngine(FakeEngine):
    """Its load changes with every step."""

    def __init__(self) -> None:
        super().__init__(blocks=2000, step_s=0.0)
        self.steps = 0

    def step(self) -> StepResult:
        self.steps += 1
        return super().step()

    def load(self, instance_id: int, *, draining: bool) -> InstanceLoad:
        load = super().load(instance_id, draining=draining)
        load.waiting_tokens = self.steps
        return load


def test_an_instance_reports_at_most_once_per_period() -> None:
    engine, reports = FastEngine(), []
    llumlet = Llumlet(
        0, engine, report=reports.append, peer=lambda _: llumlet, limits=Limits(), report_period_s=PERIOD_S
    )
    for number in range(4):
        llumlet._add(engine, Submission(EngineRequest(f"r{number}", (1, 2, 3), {"max_tokens": 1500})))
    started_s = time.monotonic()
    llumlet.news(0, 0)  # somebody listens
    llumlet.start()
    time.sleep(0.6)
    llumlet.stop()
    most = (time.monotonic() - started_s) / PERIOD_S + 1
    assert engine.steps > 3 * most  # each of them changed the load
    assert 2 <= len(reports) <= most
