"""A scheduler in a process of its own, asked over a pipe, and how much processor time each side spends on a message.

Processor time, not wall-clock time: what else the machine is doing does not enter. The system calls of the pipe do, and
so does turning messages into bytes; a network does not.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from llumnix.cluster.stub.programs import Answer, CentralScheduler, GlobalScheduling, Message
from llumnix.errors import LlumnixError

_LENGTH = struct.Struct("<Q")
PROGRAMS = {program.__name__: program for program in (CentralScheduler, GlobalScheduling)}


class SchedulerLost(LlumnixError):  # noqa: N818  says what happened, not what went wrong here
    """The scheduler's process has ended before its time."""


class Reply(NamedTuple):
    """An answer, and the processor time in ns that it took in the scheduler's process and in the asking one."""

    answer: Answer
    scheduler_ns: int
    asker_ns: int


class Asked(Protocol):
    """What a cluster needs of a scheduler."""

    def ask(self, message: Message) -> Reply: ...


class SchedulerProcess:
    """A child process that runs one of PROGRAMS; to be used in a with statement."""

    def __init__(self, program: type, *arguments: Any) -> None:
        command = [sys.executable, "-m", "llumnix.cluster.stub.process"]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._send((program.__name__, arguments))
        self._receive()

    def __enter__(self) -> SchedulerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died with a message unread
            self._child.stdin.close()
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()

    def ask(self, message: Message) -> Reply:
        """Send a message and wait for the answer; SchedulerLost if the process is gone."""
        before = time.thread_time_ns()
        self._send(message)
        scheduler_ns, answer = self._receive()
        return Reply(answer, scheduler_ns, time.thread_time_ns() - before)

    def _send(self, value: Any) -> None:
        assert self._child.stdin is not None
        try:
            _write(self._child.stdin, value)
        except OSError as error:
            raise SchedulerLost("The scheduler's process is gone; the same command tries again.") from error

    def _receive(self) -> Any:
        assert self._child.stdout is not None
        try:
            return _read(self._child.stdout)
        except EOFError as error:
            raise SchedulerLost("The scheduler's process is gone; the same command tries again.") from error


def serve(read: Callable[[], Any], write: Callable[[Any], None]) -> None:
    """Answer messages until there are no more. The time of an answer begins where that of the one before ended."""
    name, arguments = read()
    program = PROGRAMS[name](*arguments)
    write((0, None))
    before = time.thread_time_ns()
    while True:
        try:
            message = read()
        except EOFError:
            return
        answer = program.handle(message)
        now = time.thread_time_ns()
        write((now - before, answer))
        before = now


def _read(stream: Any) -> Any:
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    return pickle.loads(stream.read(_LENGTH.unpack(header)[0]))


def _write(stream: Any, value: Any) -> None:
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


if __name__ == "__main__":
    serve(lambda: _read(sys.stdin.buffer), lambda value: _write(sys.stdout.buffer, value))
