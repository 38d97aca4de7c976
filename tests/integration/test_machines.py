"""A profile of layers and recorded requests of machines that are known: the fit to the one must replay the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import heavy_tailed
from machines import MACHINES, Machine, served, write_requests

from llumnix.cluster.replay import replay
from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.cost import PS_PER_S, CostModel, StepCost
from llumnix.engines.sim.fit import fit_steps
from llumnix.engines.sim.layers import LayerProfile
from llumnix.engines.sim.spec import Batching, SimEngine
from llumnix.ground_truth import compare, read
from llumnix.request import Workload

ENGINE = SimEngine(batching=Batching.chunked, record_steps=True)
CLUSTER = ClusterSpec(instances=1, max_num_batched_tokens=2048, watermark_fraction=0.0)
NOISE = 0.02


def fitted(machine: Machine, directory: Path, kv_blocks: int) -> StepCost:
    profile = LayerProfile.read(machine.write_profile(directory, NOISE))
    return fit_steps(profile.steps(machine.layers, 16 * kv_blocks), profile.dense_line(machine.layers)).cost


def asked_of(machine: Machine, load: float) -> Workload:
    """300 requests, at `load` times what 32 decodes at a time could serve; none of a few tokens (see below)."""
    step_s = machine.cost.decode_ps(32, 32 * 800) / PS_PER_S
    asked = heavy_tailed(300, rate=load * 32 / step_s / 500, mean_tokens=500, seed=3)
    return replace(
        asked,
        prompt_tokens=np.minimum(asked.prompt_tokens, 8000),
        output_tokens=np.clip(asked.output_tokens, 100, 8000),
    )


@pytest.mark.parametrize(("load", "kv_blocks"), [(0.5, 100_000), (2.0, 2600)], ids=["light", "memory full"])
@pytest.mark.parametrize("name", MACHINES)
def test_requests_of_a_known_machine_are_replayed_within_the_targets(
    name: str, load: float, kv_blocks: int, tmp_path: Path
) -> None:
    """Means within 4 %, P99 within 5 %, but for the P99 of time per token where requests are preempted.

    That one is the third of 300 values, and whether a request of few tokens is preempted just then is chance: dense
    times that are 0.1 % longer, all else being exact, move it by up to 29 %.
    """
    machine, cluster = MACHINES[name], replace(CLUSTER, kv_blocks=kv_blocks)
    recording = served(machine, asked_of(machine, load), cluster, ENGINE)
    write_requests(tmp_path / "requests.jsonl", recording)
    columns = replay(
        read(tmp_path / "requests.jsonl"), cluster, ENGINE, CostModel(fitted(machine, tmp_path, kv_blocks), 1)
    )
    error = {(c.metric, c.statistic): abs(c.error) for c in compare(columns)}
    assert int(sum(columns["simulated_preemptions"]) > 100) == (kv_blocks == 2600)
    assert max(error[metric, "mean"] for metric in ("latency", "ttft", "tpot")) < 0.04
    stable = ("latency", "ttft") if kv_blocks == 2600 else ("latency", "ttft", "tpot")
    assert max(error[metric, "P99"] for metric in stable) < 0.05


@pytest.mark.parametrize("name", MACHINES)
def test_steps_of_every_size_are_found_from_a_noisy_profile(name: str, tmp_path: Path) -> None:
    machine = MACHINES[name]
    true, found = machine.cost, CostModel(fitted(machine, tmp_path, 3000), 1)
    for batch, context in ((1, 100), (3, 5000), (20, 300), (77, 500), (200, 150)):
        assert found.decode_ps(batch, batch * context) == pytest.approx(
            true.decode_ps(batch, batch * context), rel=0.04
        )
    for tokens in (10, 100, 257, 300, 513, 700, 900, 1030):
        prompt = (1, tokens, tokens * tokens, 0)
        assert found.prefill_ps(*prompt) == pytest.approx(true.prefill_ps(*prompt), rel=0.06), tokens
        mixed = (30, 30 * 500, *prompt)
        assert found.mixed_ps(*mixed) == pytest.approx(true.mixed_ps(*mixed), rel=0.06), tokens
