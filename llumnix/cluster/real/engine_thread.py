"""The one thread that owns an engine: steps it while there is work, and runs what others ask between two steps."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from llumnix.cluster.real.messages import InstanceLost, NoAnswer
from llumnix.engines.base import Engine, StepResult

log = logging.getLogger(__name__)
T = TypeVar("T")
IDLE_S = 0.05
"""How long an idle engine thread sleeps when nobody asks for anything; a question wakes it at once."""


class EngineThread:
    """`after(result, step_s)` runs in the thread after every step, `idle()` whenever there is nothing to do, and
    `failed(error)` once if a step raises: the engine is then not to be trusted, and every later call is refused.
    """

    def __init__(
        self,
        engine: Engine,
        after: Callable[[StepResult, float], None],
        idle: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._engine = engine
        self._after = after
        self._idle = idle
        self._failed = failed
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._stopping = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to step."""
        self._thread.start()

    def stop(self, limit_s: float) -> None:
        """End after the present step."""
        self._stopping = True
        self._commands.put(None)
        self._thread.join(limit_s)

    def stuck_s(self) -> float:
        """Return how long the step or the question under way has been going on; 0 between them."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def call(self, function: Callable[[Engine], T], limit_s: float) -> T:
        """Run `function` between two steps and return what it returns; NoAnswer after `limit_s`.

        What has not begun by then never will; what has begun goes on, and the caller does not hear of it.
        """
        if self._error is not None:
            raise InstanceLost(f"the engine has failed: {self._error}")
        future: Future[T] = Future()

        def command() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(self._engine))
                except BaseException as error:  # handed to the caller, whatever it is
                    future.set_exception(error)

        self._commands.put(command)
        try:
            return future.result(limit_s)
        except FutureTimeout:
            if future.done() and not future.cancelled():
                return future.result()
            future.cancel()
            raise NoAnswer(f"the engine thread did not answer within {limit_s:g} s") from None

    def post(self, function: Callable[[Engine], None]) -> None:
        """Run `function` between two steps, some time; nobody waits for it, and its errors are only logged."""

        def command() -> None:
            try:
                function(self._engine)
            except Exception:
                log.exception("what nobody waits for failed")

        self._commands.put(command)

    def _loop(self) -> None:
        try:
            while not self._stopping:
                self._run_commands()
                if self._engine.has_work():
                    started = time.monotonic()
                    self._busy_since = started
                    result = self._engine.step()
                    self._after(result, time.monotonic() - started)
                    self._busy_since = None
                else:
                    self._idle()
        except BaseException as error:
            log.exception("the engine failed")
            self._busy_since = None
            self._error = error
            self._failed(error)

    def _run_commands(self) -> None:
        """Run all questions that wait; without work for the engine, wait a while for the first."""
        try:
            command = self._commands.get_nowait() if self._engine.has_work() else self._commands.get(timeout=IDLE_S)
            while True:
                if command is not None:
                    self._busy_since = time.monotonic()
                    command()
                    self._busy_since = None
                command = self._commands.get_nowait()
        except queue.Empty:
            return
