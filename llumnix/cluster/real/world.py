"""A cluster on Ray, from start to shutdown: actors of instances and scheduler, and a front end in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError, RaySystemError

from llumnix.cluster.real.actors import ActorOptions, RayDispatcher, RayInstance, start_actors
from llumnix.cluster.real.front_end import FrontEnd
from llumnix.cluster.real.spec import Limits, OnLoss
from llumnix.engines.base import Engine
from llumnix.errors import LlumnixError
from llumnix.policies.spec import Scheduler

log = logging.getLogger(__name__)


class ClusterError(LlumnixError):
    """The real cluster did not start, or could not go on."""


class RayCluster:
    """What runs: `front_end` takes requests; `instances` and `dispatcher` are for those who look closer."""

    def __init__(self, namespace: str, instances: int, limits: Limits, on_loss: OnLoss) -> None:
        self.namespace = namespace
        self.instances = [RayInstance(instance_id, namespace, limits) for instance_id in range(instances)]
        self.dispatcher = RayDispatcher(namespace, limits)
        self.front_end = FrontEnd(self.instances, self.dispatcher, limits=limits, on_loss=on_loss)


@contextlib.contextmanager
def running(
    instances: int,
    build: Callable[[int], Engine],
    scheduler: Scheduler,
    *,
    limits: Limits,
    options: ActorOptions,
    on_loss: OnLoss = OnLoss.replay,
    address: str | None = None,
) -> Iterator[RayCluster]:
    """Start a cluster and stop it when the block ends. Joins the Ray cluster at `address`, or starts one here.

    ClusterError if an engine does not start: with what it said last, since its log is in another process.
    """
    namespace = f"llumnix-{uuid.uuid4().hex[:8]}"
    _connect(address, namespace, instances, options)
    try:
        started_s = time.monotonic()
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        _check_gpus(instances, options, resources.get("GPU", 0.0))
        actors = start_actors(instances, namespace, build, scheduler, limits, options)
        cluster = RayCluster(namespace, instances, limits, on_loss)
        try:
            ray.get([actor.pid.remote() for actor in actors], timeout=limits.start_s)
        except ray.exceptions.GetTimeoutError:
            raise ClusterError(
                f"Not all of the {instances} instances started within {limits.start_s:g} s: raise "
                "engine.limits.start_s, or give the Ray cluster more CPUs or GPUs."
            ) from None
        except RayActorError as error:
            raise ClusterError(f"An instance did not start: {_last_line(error)}") from error
        cluster.front_end.start()
        log.info("%d instances are up after %.0f s", instances, time.monotonic() - started_s)
        try:
            yield cluster
        finally:
            cluster.front_end.close()
            for actor in actors:
                ray.kill(actor, no_restart=True)
    finally:
        ray.shutdown()


def _check_gpus(instances: int, options: ActorOptions, gpus: float) -> None:
    """Say at once what Ray would wait for: actors that ask for more GPUs than there are never start."""
    wanted = instances * options.num_gpus
    if wanted > gpus:
        raise ClusterError(
            f"{instances} instances of {options.num_gpus:g} GPUs each need {wanted:g} GPUs, and the Ray cluster has "
            f"{gpus:g}: set cluster.instances, engine.num_gpus or ray.address; experiment=quickstart needs none."
        )


def _connect(address: str | None, namespace: str, instances: int, options: ActorOptions) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Logical CPUs: engines share the ones there are.
        cpus = max(os.cpu_count() or 1, round(instances * options.num_cpus) + 1)
        ray.init(num_cpus=cpus, include_dashboard=False, object_store_memory=1 << 29, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RaySystemError, ValueError) as error:
        raise ClusterError(f"ray.address={address}: no Ray cluster answers there ({_last_line(error)}).") from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
