"""An engine that says when a step of the migration protocol begins in it, so that tests can strike just there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fake_engine import FakeEngine

from llumnix.engines.base import Departure, FinalState, Parcel, Ready, StepResult


class Watched:
    """Mixin over an engine; `at` is called in the engine's thread, before the step is done.

    But for `answer` and `landed`: these come in the thread of the call, when it has been done and before its answer
    leaves, of a copy and of the last stage.
    """

    at: Callable[[str], None] = staticmethod(lambda step: None)

    def step(self) -> StepResult:
        self.at("step")
        return super().step()

    def freeze(self, request_id: str) -> None:
        self.at("freeze")
        super().freeze(request_id)

    def release(self, request_id: str) -> bool:
        self.at("release")
        return super().release(request_id)

    def reserve(self, departure: Departure, blocks: int) -> int:
        self.at("reserve")
        return super().reserve(departure, blocks)

    def write_blocks(self, request_id: str, first_block: int, parcels: Sequence[Parcel]) -> Ready:
        self.at("write")
        copied = super().write_blocks(request_id, first_block, parcels)
        self._committed = False

        def ready() -> None:
            copied()
            self.at("landed" if self._committed else "answer")

        return ready

    def commit(self, final: FinalState) -> None:
        self.at("commit")
        super().commit(final)
        self._committed = True


class WatchedFake(Watched, FakeEngine):
    """The fake engine, watched."""
