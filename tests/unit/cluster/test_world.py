"""What is said before Ray is asked for more than it has."""

from __future__ import annotations

import numpy as np
import pytest
import ray

from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.serve import serve
from llumnix.cluster.real.spec import RayOptions, RealEngine
from llumnix.cluster.real.world import ClusterError, _check_gpus, _connect
from llumnix.cluster.spec import ClusterSpec
from llumnix.config import Gpu, Model
from llumnix.errors import ConfigError
from llumnix.policies.scaling import ScalingPolicy
from llumnix.policies.spec import Scheduler
from llumnix.request import Workload


def test_too_few_gpus_are_named_before_anything_starts() -> None:
    with pytest.raises(ClusterError, match=r"16 instances of 1 GPUs each need 16 GPUs, and the Ray cluster has 2"):
        _check_gpus(16, ActorOptions(num_cpus=1, num_gpus=1), 2.0)


def test_another_ray_than_that_of_the_cluster_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def mismatch(**_: object) -> None:
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 1.0\nThis process with:\n    Ray: 2.0"
        )

    monkeypatch.setattr(ray, "init", mismatch)
    said = "ray.address=there: Version mismatch: The cluster was started with: Ray: 1.0 This process with: Ray: 2.0"
    with pytest.raises(ClusterError, match=f"^{said}$"):
        _connect("there", "namespace", 2, ActorOptions())


def test_enough_gpus_and_none_at_all_are_fine() -> None:
    _check_gpus(4, ActorOptions(num_cpus=1, num_gpus=0.5), 2.0)
    _check_gpus(3, ActorOptions(num_cpus=1, num_gpus=0), 0.0)


def test_a_number_to_begin_with_outside_the_bounds_of_scaling_is_refused_in_one_sentence() -> None:
    nothing = np.array([])
    workload = Workload(nothing, nothing, nothing, nothing, label="none")
    scheduler = Scheduler(scaling=ScalingPolicy(enabled=True))
    with pytest.raises(
        ConfigError, match=r"cluster\.instances=17 must lie between .*min_instances=1 and max_instances=16"
    ):
        serve(
            workload,
            ClusterSpec(instances=17),
            RealEngine(),
            Model(kv_bytes_per_token=1),
            Gpu(),
            scheduler,
            RayOptions(),
            seed=0,
            warm=None,
        )
