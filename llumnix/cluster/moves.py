"""A migration in the simulated cluster: carries out what the state machine asks for, at the cost of virtual time.

Decisions are all in llumnix.migration; here are only reservations, copy times and messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llumnix.engines.sim.cost import CostModel
from llumnix.engines.sim.instance import SimInstance
from llumnix.engines.sim.request import SimRequest
from llumnix.migration import Abort, AbortReason, Action, Commit, Copy, Freeze, Migration, Reserve, State
from llumnix.policies.migration import MigrationMethod, MigrationPolicy, choose_request


class World(Protocol):
    """What a move needs of the cluster around it."""

    @property
    def now_ps(self) -> int: ...
    @property
    def cost(self) -> CostModel: ...
    def send(self, action: Callable[[], None], delay_ps: int) -> None: ...
    def note(
        self, kind: str, instance_id: int | None, request: SimRequest | None, detail: str | None = None
    ) -> None: ...
    def move_ended(self, move: Move, *, refused: bool) -> None: ...


class Move:
    """One request on its way between two simulated instances."""

    def __init__(
        self,
        world: World,
        source: SimInstance,
        destination: SimInstance,
        request: SimRequest,
        policy: MigrationPolicy,
        block_size_tokens: int,
    ) -> None:
        self.source = source
        self.destination = destination
        self.request = request
        self._world = world
        self._machine = Migration(
            max_stages=policy.max_stages,
            last_stage_max_blocks=policy.last_stage_max_blocks,
            recompute=policy.method is MigrationMethod.recompute,
        )
        self._block_size_tokens = block_size_tokens
        self._gone: AbortReason | None = None
        self._frozen_ps = 0

    @classmethod
    def begin(
        cls,
        world: World,
        source: SimInstance,
        destination: SimInstance,
        policy: MigrationPolicy,
        block_size_tokens: int,
    ) -> Move | None:
        """Choose a request of the source; None if it has none to give."""
        request = choose_request(source.movable(), policy, source.present_load(world.now_ps))
        if request is None:
            return None
        return cls(world, source, destination, request, policy, block_size_tokens)

    def start(self) -> None:
        """Take the first step of the protocol."""
        now_ps = self._world.now_ps
        self.request.moving = True
        self._world.note("migrate_start", self.source.instance_id, self.request, f"to {self.destination.instance_id}")
        self._carry_out(self._machine.start(self.source.blocks_of(self.request, now_ps)))

    def request_gone(self, reason: AbortReason) -> None:
        """The source finished or preempted the request. Acted upon after the stage under way, as in §4.2."""
        self._gone = reason
        if self._machine.state is State.freezing:
            self._world.send(lambda: self._carry_out(self._machine.gone(reason)), self._world.cost.control_ps)

    def request_frozen(self, now_ps: int) -> None:
        """The source has taken the request out of its batch."""
        self._frozen_ps = now_ps
        self._carry_out(self._machine.froze(-(-self.request.tokens // self._block_size_tokens)))

    def _carry_out(self, action: Action) -> None:
        world = self._world
        match action:
            case Reserve(blocks):
                world.send(lambda: self._reserve(blocks), world.cost.control_ps)
            case Copy(_, blocks, last):
                copy_ps = world.cost.copy_time_ps(blocks * self._block_size_tokens, last=last) if blocks else 0
                world.send(self._copied, world.cost.control_ps + copy_ps)
            case Freeze():
                self.source.freeze(self.request, world.now_ps)
            case Commit(recompute):
                self._commit(recompute)
            case Abort(reason):
                self._abort(reason)

    def _reserve(self, blocks: int) -> None:
        first, now_ps = self._machine.reserved_blocks == 0, self._world.now_ps
        if blocks == 0:  # to be computed again: it queues there like any other
            self._carry_out(self._machine.reserved())
        elif self.destination.reserve(blocks, now_ps, seat=first):
            if first:
                self.source.set_migrating(True, now_ps)
                self.destination.set_migrating(True, now_ps)
            self._carry_out(self._machine.reserved())
        else:
            self._world.send(lambda: self._carry_out(self._machine.refused()), self._world.cost.control_ps)

    def _copied(self) -> None:
        self._world.note("migrate_stage", self.source.instance_id, self.request, f"stage {self._machine.stages}")
        if self._gone is not None:
            self._carry_out(self._machine.gone(self._gone))
        elif self._machine.frozen:
            self._carry_out(self._machine.copied(self._machine.reserved_blocks))
        else:
            blocks = self.source.blocks_of(self.request, self._world.now_ps)
            self._carry_out(self._machine.copied(blocks))

    def _commit(self, recompute: bool) -> None:
        request, now_ps = self.request, self._world.now_ps
        request.migrations += 1
        request.moved = True
        self._world.note("migrate_commit", self.destination.instance_id, request, f"from {self.source.instance_id}")
        self.source.release(-(-request.tokens // self._block_size_tokens), now_ps)
        if recompute:
            request.tokens = request.prompt_tokens + request.generated
            request.frozen_ps = self._frozen_ps
            self.destination.enqueue(request, now_ps)
        else:
            request.downtime_ps += now_ps - self._frozen_ps
            self.destination.join(request, now_ps, inbound=True)
        self._end(refused=False)

    def _abort(self, reason: AbortReason) -> None:
        now_ps = self._world.now_ps
        self._world.note("migrate_abort", self.source.instance_id, self.request, reason)
        if self._machine.reserved_blocks:
            self.destination.cancel(self._machine.reserved_blocks, now_ps)
        if self._machine.frozen:
            self.source.join(self.request, now_ps, inbound=False)
        self._end(refused=reason is AbortReason.no_memory)

    def _end(self, *, refused: bool) -> None:
        now_ps = self._world.now_ps
        self.request.moving = False
        if self._machine.reserved_blocks:
            self.source.set_migrating(False, now_ps)
            self.destination.set_migrating(False, now_ps)
        self._world.move_ended(self, refused=refused)
