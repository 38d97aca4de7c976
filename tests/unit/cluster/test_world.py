"""What is said before Ray is asked for more than it has."""

from __future__ import annotations

import pytest

from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.world import ClusterError, _check_gpus


def test_too_few_gpus_are_named_before_anything_starts() -> None:
    with pytest.raises(ClusterError, match=r"16 instances of 1 GPUs each need 16 GPUs, and the Ray cluster has 2"):
        _check_gpus(16, ActorOptions(num_cpus=1, num_gpus=1), 2.0)


def test_enough_gpus_and_none_at_all_are_fine() -> None:
    _check_gpus(4, ActorOptions(num_cpus=1, num_gpus=0.5), 2.0)
    _check_gpus(3, ActorOptions(num_cpus=1, num_gpus=0), 0.0)
