"""Calls between processes of a cluster that do not go through Ray: for what is frequent, or what somebody waits for.

A call to a Ray actor costs both processes one to two milliseconds of CPU time, much of it under the interpreter lock
that the engine thread needs, and as much on the way. Dispatches, submissions, load reports and landings go over
connections of their own instead. Whoever asks gets the answer, or InstanceLost or NoAnswer, after which it is open
whether the other side has acted.
"""

from __future__ import annotations

import logging
import pickle
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from llumnix.cluster.real import channel
from llumnix.cluster.real.messages import Address, InstanceLost, NoAnswer

log = logging.getLogger(__name__)


class CallServer:
    """Answers calls to `methods` by name, each connection in a thread of its own."""

    def __init__(self, methods: Mapping[str, Callable[..., Any]], host: str) -> None:
        self._methods = methods
        self._listener, self.address = channel.listen(host)
        threading.Thread(target=self._run, name="calls", daemon=True).start()

    def close(self) -> None:
        """Take no new connection."""
        self._listener.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread that accepts
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection,), name="call", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        if not channel.let_in(connection, self.address):
            return
        with connection:
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a node that dies says nothing
            try:
                while True:
                    method, arguments, answered = pickle.loads(channel.message(connection))
                    answer = self._answer(method, arguments)
                    if answered:
                        connection.sendall(channel.framed(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)))
            except (OSError, EOFError) as error:
                log.debug("a caller has gone: %s", error)
            except Exception:  # what cannot be read or written; without an answer the caller takes it for unknown
                log.exception("a call failed")

    def _answer(self, method: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
        try:
            return True, self._methods[method](*arguments)
        except Exception as error:  # the caller's to judge, whatever it is
            return False, error


class CallLink:
    """The caller's end: as many connections as there are calls at a time. Thread-safe."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[socket.socket] = []
        self._closed = False

    def open(self, limit_s: float) -> None:
        """Have a connection ready; InstanceLost if nobody is there, NoAnswer after `limit_s`."""
        self._keep(channel.connect(self._address, limit_s))

    def ask(self, method: str, limit_s: float, *arguments: Any) -> Any:
        """Call a method and wait for its answer. Raises InstanceLost, NoAnswer, or what the method raised."""
        connection = self._take(limit_s)
        try:
            connection.settimeout(limit_s)
            connection.sendall(_call(method, arguments, answered=True))
            content = channel.message(connection, time.monotonic() + limit_s)
        except TimeoutError:
            connection.close()
            raise NoAnswer(f"{method} was not answered within {limit_s:g} s") from None
        except (OSError, EOFError) as error:
            connection.close()
            raise InstanceLost(f"the connection of a call to {method} broke: {error}") from None
        self._keep(connection)
        done, answer = pickle.loads(content)
        if not done:
            raise answer
        return answer

    def tell(self, method: str, limit_s: float, *arguments: Any) -> bool:
        """Call a method without waiting for it to be done, or even read; False if its buffers are full.

        InstanceLost if the other side is known to have gone.
        """
        connection = self._take(limit_s)
        content = _call(method, arguments, answered=False)
        try:
            connection.setblocking(False)
            if _has_gone(connection):
                raise ConnectionResetError("the other side hung up")
            try:
                sent = connection.send(content)
            except BlockingIOError:
                sent = 0
            if 0 < sent < len(content):  # the rest has to follow
                connection.settimeout(limit_s)
                connection.sendall(content[sent:])
        except OSError as error:
            connection.close()
            raise InstanceLost(f"the connection of a call to {method} broke: {error}") from None
        self._keep(connection)
        return sent > 0

    def close(self) -> None:
        """Hang up; calls under way end as they would have."""
        self._closed = True
        while self._idle:
            self._take(0.0).close()

    def _take(self, limit_s: float) -> socket.socket:
        try:
            return self._idle.pop()
        except IndexError:
            return channel.connect(self._address, limit_s)

    def _keep(self, connection: socket.socket) -> None:
        self._idle.append(connection)
        if self._closed:
            self.close()


def _call(method: str, arguments: tuple[Any, ...], *, answered: bool) -> bytes:
    return channel.framed(pickle.dumps((method, arguments, answered), pickle.HIGHEST_PROTOCOL))


def _has_gone(connection: socket.socket) -> bool:
    """Tell whether the other side has hung up: it sends nothing that was not asked for."""
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
