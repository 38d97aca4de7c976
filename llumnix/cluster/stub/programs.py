"""The two programs that Figure 16 compares: what runs in the scheduler's process, and the messages to it.

CentralScheduler holds all requests of all instances and plans every step of each. GlobalScheduling is the control of
the Ray cluster, fed with the reports of instances that have their own schedulers. Both dispatch by the same policy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from llumnix.cluster.real.control import Control
from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.stub.batch import BatchScheduler, Plan
from llumnix.load import InstanceLoad
from llumnix.policies.spec import Scheduler
from llumnix.request import Priority


class Arrival(NamedTuple):
    """A request has come; `idle` says which instances have no step under way. Times are in s."""

    now_s: float
    request_id: int
    prompt_tokens: int
    output_tokens: int = 1
    idle: frozenset[int] = frozenset()


class StepEnded(NamedTuple):
    """An instance has ended a step and gives its (request, token) pairs."""

    now_s: float
    instance_id: int
    outputs: list[tuple[int, int]]


class Report(NamedTuple):
    """An instance tells its load."""

    now_s: float
    load: InstanceLoad


class Round(NamedTuple):
    """It is time to look for migrations."""

    now_s: float


Message = Arrival | StepEnded | Report | Round
Answer = tuple[int, Plan | None] | Plan | int | None


class CentralScheduler:
    """One scheduler for all instances: requests, queues, batches and block tables are all here."""

    def __init__(self, scheduler: Scheduler, cluster: ClusterSpec, total_blocks: int) -> None:
        self._batches = [BatchScheduler(i, cluster, total_blocks) for i in range(cluster.instances)]
        self._control = Control(scheduler, lambda _, ended: ended(False), clock=lambda: 0.0)  # nothing can fall silent
        self._changed = set(range(cluster.instances))

    def handle(self, message: Message) -> Answer:
        """Arrival: the instance, and its plan if it was idle. StepEnded: the instance's next plan."""
        match message:
            case Arrival(_, request_id, prompt_tokens, output_tokens, idle):
                for changed in self._changed:
                    self._control.report(self._batches[changed].load())
                instance_id = self._control.dispatch(Priority.NORMAL)
                batch = self._batches[instance_id]
                batch.add(request_id, prompt_tokens, output_tokens)
                self._changed = {instance_id}
                return instance_id, batch.next_step(()) if instance_id in idle else None
            case StepEnded(_, instance_id, outputs):
                self._changed.add(instance_id)
                return self._batches[instance_id].next_step(outputs)
            case other:
                raise TypeError(f"a centralized scheduler gets no {type(other).__name__}")


class GlobalScheduling:
    """Llumnix's global scheduler: dispatch, reports and migration rounds, as in the Ray cluster.

    It adds the requests that it has sent since to the last report of an instance: at thousands of requests/s all that
    come within one step would go to the same instance otherwise, and batches would be no longer those of the baseline.
    Pairs of a round are counted and then refused: there is no KV cache here that could move.
    """

    def __init__(self, scheduler: Scheduler, cluster: ClusterSpec, total_blocks: int) -> None:
        self._now_s = 0.0
        self._control = Control(
            scheduler, lambda _, ended: ended(False), report_limit_s=float("inf"), clock=lambda: self._now_s
        )
        for instance_id in range(cluster.instances):
            self._control.report(BatchScheduler(instance_id, cluster, total_blocks).load())

    def handle(self, message: Message) -> Answer:
        """Arrival: the instance. Report: nothing. Round: the number of pairs so far."""
        self._now_s = message.now_s
        match message:
            case Arrival(_, _, prompt_tokens):
                instance_id = self._control.dispatch(Priority.NORMAL)
                load = self._control.latest(instance_id)
                waiting_tokens = load.waiting_tokens + prompt_tokens
                self._control.report(replace(load, waiting=load.waiting + 1, waiting_tokens=waiting_tokens))
                return instance_id
            case Report(_, load):
                self._control.report(load)
                return None
            case Round():
                self._control.round()
                return self._control.pairs_started
            case other:
                raise TypeError(f"a global scheduler gets no {type(other).__name__}")
