"""What the schemas of the core refuse, in one sentence that names the value."""

from __future__ import annotations

import math

import pytest

from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.spec import SimEngine
from llumnix.errors import ConfigError


@pytest.mark.parametrize("name", ["instances", "block_size_tokens", "max_num_seqs", "max_num_batched_tokens"])
@pytest.mark.parametrize("value", [0, -3])
def test_limits_of_a_cluster_start_at_one(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"cluster\.{name} must be at least 1, got {value}\."):
        ClusterSpec(**{name: value})


def test_a_cluster_may_leave_its_blocks_to_the_gpu_but_not_have_none() -> None:
    assert ClusterSpec(kv_blocks=None).kv_blocks is None
    with pytest.raises(ConfigError, match=r"cluster\.kv_blocks must be at least 1 .* got 0\."):
        ClusterSpec(kv_blocks=0)


@pytest.mark.parametrize("value", [-0.01, 1.0, math.nan])
def test_the_watermark_is_a_fraction(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"cluster\.watermark_fraction must be in \[0, 1\), got {value}"):
        ClusterSpec(watermark_fraction=value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_sample_period_is_positive(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"engine\.sample_period_s must be positive, got {value}"):
        SimEngine(sample_period_s=value)
