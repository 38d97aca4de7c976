"""Engines that stay up between the runs of a process: on a GPU they take a minute to start, longer than most runs.

A sweep in one process (hydra.launcher.n_jobs=1) so starts its engines once, as long as its runs ask for the same ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.build import build_engine
from llumnix.cluster.real.spec import Limits, OnLoss
from llumnix.cluster.real.world import RayCluster
from llumnix.engines.vllm.options import VllmOptions
from llumnix.policies.spec import Scheduler


@dataclass(frozen=True, kw_only=True, slots=True)
class Engines:
    """All that makes engines other engines."""

    instances: int
    max_instances: int
    options: VllmOptions
    environment: dict[str, str]
    limits: Limits
    actors: ActorOptions
    on_loss: OnLoss
    address: str | None

    def start(self) -> RayCluster:
        """Start them, and wait until they are up."""
        build = partial(build_engine, self.options, self.environment)
        return RayCluster(
            self.instances, build, self.limits, self.actors, self.on_loss, self.address, self.max_instances
        )


class WarmEngines:
    """The engines of the last run, if it went well."""

    def __init__(self) -> None:
        self._engines: Engines | None = None
        self._cluster: RayCluster | None = None

    @contextlib.contextmanager
    def serving(
        self, engines: Engines, scheduler: Scheduler, *, record_steps: bool, transports: Sequence[str]
    ) -> Iterator[RayCluster]:
        """Give a cluster for one run: on the engines of the run before if they are the same, else on new ones.

        After a run that scales there are other instances than a run begins with: its engines are not kept.
        """
        if self._cluster is None or self._engines != engines:
            self.close()
            self._engines, self._cluster = engines, engines.start()
        try:
            self._cluster.begin_run(scheduler, record_steps=record_steps, transports=transports)
            yield self._cluster
            self._cluster.end_run()
            if scheduler.scaling.enabled:
                self.close()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the engines."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.close()
