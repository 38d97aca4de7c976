"""One run after the other on the same instances: nothing of the first is left for the second."""

from __future__ import annotations

from itertools import pairwise

import pytest
from fake_engine import FakeEngine
from local import LocalCluster, assert_exact, no_leak, wait_until

from llumnix.cluster.real.front_end import FrontEnd
from llumnix.policies.migration import MigrationPolicy


def test_a_new_run_finds_empty_instances_and_may_use_the_same_ids() -> None:
    with LocalCluster(2, build=lambda _: FakeEngine(blocks=512, step_s=0.02)) as cluster:
        left = [cluster.submit(n, tokens=200, prompt=12) for n in range(6)]
        wait_until(lambda: all(stream.tokens for stream in left))
        cluster.front_end.close()
        before = [link.llumlet.incarnation for link in cluster.links]
        assert any(link.engine.running for link in cluster.links)
        for link in cluster.links:
            link.llumlet.begin_run(record_steps=False)
            assert not link.engine.running + link.engine.waiting
        no_leak(cluster)
        assert all(link.llumlet.incarnation != old for link, old in zip(cluster.links, before, strict=True))

        cluster.front_end = FrontEnd(cluster.links, cluster, limits=cluster.limits, bypass_s=0.05)
        cluster.front_end.start()
        for stream in [cluster.submit(n, tokens=20, prompt=9) for n in range(6)]:
            assert_exact(stream)
        assert cluster.front_end.duplicates == 0
        no_leak(cluster)


def test_steps_are_recorded_from_the_begin_of_a_run_and_only_if_asked_for() -> None:
    with LocalCluster(1) as cluster:
        llumlet = cluster.links[0].llumlet
        assert_exact(cluster.submit(0, tokens=10))
        assert llumlet.steps() == []
        llumlet.begin_run(record_steps=True)
        wait_until(lambda: not cluster.front_end._down)
        assert_exact(cluster.submit(1, tokens=25))
        steps = llumlet.steps()
        assert len(steps) == 25
        assert {(step.batch, step.tokens) for step in steps} == {(1, 1)}
        assert all(later.end_s - step.end_s >= later.duration_s - 1e-3 for step, later in pairwise(steps))
        llumlet.begin_run(record_steps=True)
        assert llumlet.steps() == []


class TwoCarriers(FakeEngine):
    """An engine that could send blocks in two ways."""

    carriers = ("shared_memory", "inline")


@pytest.mark.parametrize(("transports", "taken"), [((), "shared_memory"), (("inline",), "inline"), (("cuda_ipc",), "")])
def test_a_run_may_say_by_which_transports_blocks_travel(transports: tuple[str, ...], taken: str) -> None:
    with LocalCluster(2, build=lambda _: TwoCarriers(step_s=0.005)) as cluster:
        source = cluster.links[0].llumlet
        source.place, source.process = "here", "another"  # two processes of a node
        cluster.links[1].llumlet.place = "here"
        for link in cluster.links:
            link.llumlet.begin_run(record_steps=False, transports=transports)
        wait_until(lambda: not cluster.front_end._down)
        cluster.pinned = 0
        stream = cluster.submit(0, tokens=120, prompt=30)
        wait_until(lambda: len(stream.tokens) >= 5)
        outcome = source.migrate_out(1, MigrationPolicy())
        assert (outcome.moved, outcome.carrier.partition(" ")[0]) == (bool(taken), taken)
        assert taken or "no common carrier" in str(outcome.reason)
        assert_exact(stream)
