"""A cluster on Ray, from start to shutdown: actors of instances and scheduler, and a front end in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RaySystemError

import llumnix
from llumnix.cluster.real.actors import ActorOptions, RayDispatcher, RayInstance, start_instance, start_scheduler
from llumnix.cluster.real.fleet import Fleet
from llumnix.cluster.real.front_end import FrontEnd
from llumnix.cluster.real.messages import LinkError, Step
from llumnix.cluster.real.spec import Limits, OnLoss
from llumnix.engines.base import Engine
from llumnix.errors import LlumnixError
from llumnix.policies.spec import Scheduler

log = logging.getLogger(__name__)


class ClusterError(LlumnixError):
    """The real cluster did not start, or could not go on."""


class RayCluster:
    """Instances, and for each run a global scheduler, a front end and, where it scales, a fleet of its own.

    `front_end` takes requests. `instances` and `dispatcher` are for those who look closer; `instances` are all that
    there have been, by id. A run that has scaled is the last one.
    """

    def __init__(
        self,
        instances: int,
        build: Callable[[int], Engine],
        limits: Limits,
        options: ActorOptions,
        on_loss: OnLoss,
        address: str | None,
        max_instances: int | None = None,
    ) -> None:
        """Start the engines, here or in the Ray cluster at `address`, and wait until they are up.

        There has to be place for `max_instances`, if there can be more later. ClusterError if one does not start: with
        what it said last, since its log is in another process.
        """
        self.namespace = f"llumnix-{uuid.uuid4().hex[:8]}"
        self.instances: list[RayInstance] = []
        self.fleet: Fleet | None = None
        self._build = build
        self._limits = limits
        self._options = options
        self._on_loss = on_loss
        self._record_steps = False
        self._transports: Sequence[str] = ()
        self._steps: dict[int, list[Step]] = {}  # of instances that have been ended
        self._actors: dict[int, ActorHandle[Any]] = {}
        self._ready: dict[int, Any] = {}  # answers of those that start
        self._scheduler: ActorHandle[Any] | None = None
        most = max_instances or instances
        _connect(address, self.namespace, most, options)
        try:
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            _check_gpus(most, options, resources.get("GPU", 0.0))
            for instance_id in range(instances):
                self.start_instance(instance_id)
            self._wait_for(list(self._actors.values()))
        except BaseException:
            ray.shutdown()
            raise

    def begin_run(self, scheduler: Scheduler, *, record_steps: bool = False, transports: Sequence[str] = ()) -> None:
        """Serve under this scheduler from now on; nothing is left of the run before. No `transports` means any."""
        self.end_run()
        self._record_steps, self._transports = record_steps, transports
        for instance in self.instances:
            instance.begin_run(record_steps=record_steps, transports=transports)
        scaling = scheduler.scaling
        most = scaling.most(len(self.instances))
        self._scheduler = start_scheduler(self.namespace, scheduler, self._limits, most)
        self._wait_for([self._scheduler])
        self.dispatcher = RayDispatcher(self.namespace, self._limits)
        self.front_end = FrontEnd(self.instances, self.dispatcher, limits=self._limits, on_loss=self._on_loss)
        self.front_end.start()
        self._wait_for_reports()
        if scaling.enabled:
            start_limit_s = self._limits.start_s
            self.fleet = Fleet(
                self.front_end, self.dispatcher, self, scaling, self.instances, start_limit_s=start_limit_s
            )

    def drain(self, instance_id: int, limit_s: float) -> bool:
        """Let an instance take nothing and give its requests away; True once it is empty, False if not by `limit_s`.

        Where the scheduler does not migrate, it is empty when its requests have ended. It stays so until resume(),
        or until it is restarted. ClusterError in a run that scales: there the global scheduler decides who drains.
        """
        if self.fleet is not None:
            raise ClusterError(
                "With scheduler.scaling.enabled=true instances are drained by the global scheduler alone."
            )
        self.instances[instance_id].set_draining(True)
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s:
            load = self.front_end.loads.get(instance_id)
            if load is not None and load.draining and load.running == load.waiting == 0:
                return True
            time.sleep(0.02)
        return False

    def resume(self, instance_id: int) -> None:
        """Let an instance that has been drained take requests again."""
        self.instances[instance_id].set_draining(False)

    def steps(self) -> dict[int, list[Step]]:
        """Return the steps of this run by instance, if they are recorded; of those that died only since they did."""
        return self._steps | {instance_id: self.instances[instance_id].steps() for instance_id in self._actors}

    def traffic(self) -> dict[str, int]:
        """Return the global scheduler's counts of control messages since it started; empty while it is away."""
        try:
            return self.dispatcher.traffic()
        except LinkError as error:
            log.debug("the global scheduler does not say what it has heard: %s", error)
            return {}

    def end_run(self) -> None:
        """Stop the scheduler and the front end; the engines stay up."""
        if self.fleet is not None:
            self.fleet.close()
        if self._scheduler is not None:
            self.front_end.close()
            ray.kill(self._scheduler, no_restart=True)
            self._scheduler = None

    def close(self) -> None:
        """Stop everything, and leave the Ray cluster or end the one that was started here."""
        try:
            self.end_run()
            self._end(list(self._actors.values()))
        finally:
            ray.shutdown()

    # --- for the fleet (Host)

    def start_instance(self, instance_id: int) -> RayInstance:
        """Start the actor of an instance and return at once."""
        actor = start_instance(
            instance_id,
            self.namespace,
            self._build,
            self._limits,
            self._options,
            record_steps=self._record_steps,
            transports=self._transports,
        )
        self._actors[instance_id], self._ready[instance_id] = actor, actor.pid.remote()
        self.instances.append(RayInstance(instance_id, self.namespace, self._limits))
        return self.instances[-1]

    def end_instance(self, instance_id: int) -> None:
        """End the actor of an instance; its GPUs are free for others."""
        if self._record_steps:
            with contextlib.suppress(LinkError):
                self._steps[instance_id] = self.instances[instance_id].steps()
        self._end([self._actors.pop(instance_id)])

    def start_failure(self, instance_id: int) -> str | None:
        """Say why the actor of an instance cannot start: Ray restarts one whose process dies, not one that raises."""
        ready = self._ready.get(instance_id)
        if ready is None or not ray.wait([ready], timeout=0)[0]:
            return None
        del self._ready[instance_id]
        try:
            ray.get(ready)
        except ActorUnavailableError:  # it died and is being restarted
            self._ready[instance_id] = self._actors[instance_id].pid.remote()
        except RayActorError as error:
            return _last_line(error)
        return None

    # --- inside

    def _end(self, actors: Sequence[ActorHandle[Any]]) -> None:
        """End processes for good, after they have given back what would outlive them or `control_s` have passed."""
        closing: list[Any] = [actor.close.remote() for actor in actors]
        ray.wait(closing, num_returns=len(closing), timeout=self._limits.control_s)
        for actor in actors:
            ray.kill(actor, no_restart=True)

    def _wait_for_reports(self) -> None:
        """Wait until the scheduler knows all instances; what comes before would be dispatched without it."""
        end_s = time.monotonic() + self._limits.control_s
        while self.traffic().get("instances", 0) < len(self.instances) and time.monotonic() < end_s:
            time.sleep(0.02)

    def _wait_for(self, actors: Sequence[ActorHandle[Any]]) -> None:
        started_s = time.monotonic()
        try:
            ray.get([actor.pid.remote() for actor in actors], timeout=self._limits.start_s)
        except ray.exceptions.GetTimeoutError:
            raise ClusterError(
                f"Not all of the {len(self.instances)} instances started within {self._limits.start_s:g} s: raise "
                "engine.limits.start_s, or give the Ray cluster more CPUs or GPUs."
            ) from None
        except RayError as error:
            reason = _last_line(error)
            if "No module named" in reason:
                reason += (
                    ", where Ray has started it: install the requirements of llumnix on every node of the cluster."
                )
            raise ClusterError(f"An instance did not start: {reason}") from error
        log.info("%d actors are up after %.0f s", len(actors), time.monotonic() - started_s)


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
    """Start a cluster for one run and stop it when the block ends."""
    cluster = RayCluster(instances, build, limits, options, on_loss, address, scheduler.scaling.most(instances))
    try:
        cluster.begin_run(scheduler)
        yield cluster
    finally:
        cluster.close()


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
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 puts engines behind everything else on the machine
    quiet: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Logical CPUs: engines share the ones there are.
        cpus = max(os.cpu_count() or 1, round(instances * options.num_cpus) + 1)
        # Without "local" Ray would join a cluster that somebody has started on this machine.
        ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=1 << 29, **quiet)
        return
    package = {"py_modules": [str(Path(llumnix.__file__).parent)]}  # the nodes may have another version of it, or none
    try:
        ray.init(address=address, runtime_env=package, **quiet)
    except (ConnectionError, RaySystemError, ValueError) as error:
        raise ClusterError(f"ray.address={address}: no Ray cluster answers there ({_last_line(error)}).") from error
    except RuntimeError as error:  # other versions of Ray or Python there
        raise ClusterError(f"ray.address={address}: {' '.join(str(error).split())}") from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
