"""Recorded requests replayed: those that the simulated engine served itself, and a real one's if they are here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import heavy_tailed

from llumnix import recorded_limits
from llumnix.cluster.replay import replay
from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.cost import CostModel, MixedCost, StepCost
from llumnix.engines.sim.fit import fit_steps
from llumnix.engines.sim.layers import LayerProfile
from llumnix.engines.sim.spec import Batching, SimEngine
from llumnix.errors import ConfigError
from llumnix.ground_truth import Recording, compare, read

MEASURED = Path(__file__).parents[3] / "shared" / "ground_truth" / "rtx4090_llama31_8b"
ENGINE = SimEngine(batching=Batching.chunked, record_steps=True)
CLUSTER = ClusterSpec(instances=1, kv_blocks=2588, max_num_batched_tokens=2048, watermark_fraction=0.0)
COST = CostModel(
    StepCost(dense_tokens=[1, 64, 2048], dense_ms=[16, 18, 190], decode_per_token_ms=2e-4, mixed=MixedCost(base_ms=1)),
    1,
)


def recorded(queued_s: np.ndarray, cluster: ClusterSpec) -> Recording:
    """Return what the simulated engine has served, as a recording that says when each request was taken in."""
    asked = heavy_tailed(len(queued_s), rate=10.0, mean_tokens=500)
    once = replay(Recording(asked, queued_s, queued_s, queued_s), cluster, ENGINE, COST)
    names = ("queued_s", "first_token_s", "end_s")
    return Recording(asked, *(np.asarray(once[f"simulated_{name}"]) for name in names))


@pytest.mark.parametrize("kv_blocks", [500, 20_000])
def test_its_own_requests_are_replayed_without_error(kv_blocks: int) -> None:
    cluster = replace(CLUSTER, kv_blocks=kv_blocks)
    columns = replay(recorded(np.zeros(150), cluster), cluster, ENGINE, COST)
    assert sum(columns["simulated_preemptions"]) > 0 or kv_blocks > 500
    assert {c.error for c in compare(columns)} == {0.0}
    another = replay(recorded(np.zeros(150), cluster), replace(cluster, kv_blocks=450), ENGINE, COST)
    assert any(c.error for c in compare(another)) or kv_blocks == 450


def test_a_request_is_taken_in_between_two_steps() -> None:
    columns = replay(recorded(np.zeros(150), CLUSTER), CLUSTER, ENGINE, COST)
    wait_s = np.asarray(columns["simulated_queued_s"]) - columns["arrival_s"]
    assert (wait_s >= -1e-9).all()
    assert wait_s.max() < 0.2, "a step of 2,048 tokens takes 0.19 s"
    assert wait_s[0] == pytest.approx(0, abs=1e-9), "the first comes to an idle engine"
    assert np.mean(wait_s > 1e-3) > 0.5, "most come during a step"


def test_a_request_that_never_fits_is_refused() -> None:
    small = replace(CLUSTER, kv_blocks=40)
    with pytest.raises(ConfigError, match=r"of the recorded requests, which have up to .* type kv_blocks=N"):
        replay(recorded(np.zeros(150), CLUSTER), small, ENGINE, COST)


LEFT_OUT = {
    "nothing": lambda attention, chance: attention["us"] < 0,
    "batches of 32": lambda attention, chance: attention["n_decode"] == 32,
    "contexts of 2,048 tokens and more": lambda attention, chance: attention["kv_decode"] >= 2048,
    "half of the rows": lambda attention, chance: chance < 0.5,
}


@pytest.mark.skipif(not MEASURED.is_dir(), reason=f"needs the recorded requests in {MEASURED.name}, not part of this")
@pytest.mark.parametrize("left_out", LEFT_OUT)
def test_300_requests_of_a_real_engine_come_out_within_four_percent(left_out: str) -> None:
    """vLLM 0.19 on an RTX 4090, whose KV cache is full: the profile of its layers is all that the fit has seen.

    Nor does it need all of the profile.
    """
    layers = LayerProfile.read(MEASURED)
    chance = np.random.default_rng(0).random(len(layers.attention["us"]))
    kept = ~LEFT_OUT[left_out](layers.attention, chance)
    layers = replace(layers, attention={name: column[kept] for name, column in layers.attention.items()})
    fit = fit_steps(layers.steps(32, 2588 * 16), layers.dense_line(32))
    columns = replay(read(MEASURED / "requests.jsonl"), CLUSTER, ENGINE, CostModel(fit.cost, 131_072))
    error = {(c.metric, c.statistic): abs(c.error) for c in compare(columns)}
    assert max(error[metric, "mean"] for metric in ("latency", "ttft", "tpot")) < 0.04
    assert max(error[metric, "P99"] for metric in ("latency", "ttft", "tpot")) < 0.05
    assert sum(columns["simulated_preemptions"]) > 100


@pytest.mark.skipif(not MEASURED.is_dir(), reason=f"needs the time series in {MEASURED.name}, not part of this")
def test_the_time_series_of_a_real_engine_shows_how_many_blocks_it_had() -> None:
    """It logged 2,588, of which vLLM never hands out the first."""
    limits = recorded_limits.read(MEASURED / recorded_limits.TIMESERIES)
    assert (limits.kv_blocks, limits.max_num_seqs) == (2587, None)
