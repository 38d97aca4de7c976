"""The way of a landing, the one message that a frozen request waits for: a connection from source to destination.

It is opened when the destination has reserved, long before anything is frozen, and serves one migration. Where it
cannot be opened the landing goes as a call to the actor, like every other message between instances.
"""

from __future__ import annotations

import logging
import pickle
import socket
import threading
import time
from collections.abc import Callable

from llumnix.cluster.real import channel
from llumnix.cluster.real.messages import Address, InstanceLost, Landing, NoAnswer

log = logging.getLogger(__name__)
_LANDED, _REFUSED = b"1", b"0"


class LandingServer:
    """Calls `land` for what arrives; a connection that brings nothing for `silence_s` is closed."""

    def __init__(self, land: Callable[[Landing], bool], host: str, *, silence_s: float) -> None:
        self._land = land
        self._silence_s = silence_s
        self._listener, self.address = channel.listen(host)
        threading.Thread(target=self._run, name="landings", daemon=True).start()

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
            threading.Thread(target=self._serve, args=(connection,), name="landing", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        if not channel.let_in(connection, self.address):
            return
        with connection:
            try:
                landing = pickle.loads(channel.message(connection, time.monotonic() + self._silence_s))
                connection.sendall(_LANDED if self._land(landing) else _REFUSED)
            except (OSError, EOFError) as error:  # the source has gone, or its migration ended otherwise
                log.debug("no landing, or no way to answer it: %s", error)
            except Exception:  # without an answer the source takes it for unknown, which is what it is
                log.exception("a landing failed")


class LandingLink:
    """The source's end; good for one landing."""

    def __init__(self, address: Address, limit_s: float) -> None:
        """Connect; InstanceLost if nobody is there, NoAnswer after `limit_s`."""
        self._connection = channel.connect(address, limit_s)

    def land(self, landing: Landing, limit_s: float) -> bool:
        """Send it and wait for the answer. After InstanceLost or NoAnswer it may have landed or not."""
        with self._connection as connection:
            try:
                connection.settimeout(limit_s)
                connection.sendall(channel.framed(pickle.dumps(landing, pickle.HIGHEST_PROTOCOL)))
                return channel.exactly(connection, 1, time.monotonic() + limit_s) == _LANDED
            except TimeoutError:
                raise NoAnswer(f"a landing was not answered within {limit_s:g} s") from None
            except (OSError, EOFError) as error:
                raise InstanceLost(f"the connection of a landing broke: {error}") from None

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
