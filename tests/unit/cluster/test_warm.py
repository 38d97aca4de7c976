"""Engines stay up for runs that ask for the same ones, and for no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.spec import Limits, OnLoss
from llumnix.cluster.real.warm import Engines, WarmEngines
from llumnix.engines.vllm.options import VllmOptions
from llumnix.policies.scaling import ScalingPolicy
from llumnix.policies.spec import Scheduler

ASKED = Engines(
    instances=2,
    max_instances=2,
    options=VllmOptions(model="m"),
    environment={},
    limits=Limits(),
    actors=ActorOptions(),
    on_loss=OnLoss.replay,
    address=None,
)


class Cluster:
    """Says what was asked of it."""

    def __init__(self, said: list[str]) -> None:
        self.said = said
        said.append("start")

    def begin_run(self, scheduler: Scheduler, *, record_steps: bool, transports: Sequence[str]) -> None:
        self.said.append(f"begin {scheduler.name} {record_steps}")
        assert transports == ["inline"]

    def end_run(self) -> None:
        self.said.append("end")

    def close(self) -> None:
        self.said.append("close")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(Engines, "start", lambda self: Cluster(said))
    return said


def serve(warm: WarmEngines, name: str, engines: Engines = ASKED, fails: bool = False) -> None:
    with warm.serving(engines, Scheduler(name=name), record_steps=False, transports=["inline"]):
        if fails:
            raise RuntimeError("the run broke")


def test_the_same_engines_serve_the_next_run_under_another_scheduler(said: list[str]) -> None:
    warm = WarmEngines()
    serve(warm, "a")
    serve(warm, "b")
    warm.close()
    warm.close()
    assert said == ["start", "begin a False", "end", "begin b False", "end", "close"]


@pytest.mark.parametrize(
    "other", [{"instances": 3}, {"options": VllmOptions(model="other")}, {"limits": Limits(step_s=1)}]
)
def test_other_engines_are_started_after_the_old_ones_have_stopped(said: list[str], other: dict[str, Any]) -> None:
    warm = WarmEngines()
    serve(warm, "a")
    serve(warm, "b", replace(ASKED, **other))
    assert said == ["start", "begin a False", "end", "close", "start", "begin b False", "end"]


def test_engines_of_a_run_that_broke_are_not_used_again(said: list[str]) -> None:
    warm = WarmEngines()
    with pytest.raises(RuntimeError, match="the run broke"):
        serve(warm, "a", fails=True)
    serve(warm, "b")
    assert said == ["start", "begin a False", "close", "start", "begin b False", "end"]


def test_engines_of_a_run_that_scales_are_not_kept(said: list[str]) -> None:
    warm = WarmEngines()
    with warm.serving(
        ASKED, Scheduler(name="a", scaling=ScalingPolicy(enabled=True)), record_steps=False, transports=["inline"]
    ):
        pass
    serve(warm, "b")
    assert said == ["start", "begin a False", "end", "close", "start", "begin b False", "end"]
