"""The way of tokens from an instance to the front end: a socket of its own, on which the engine thread sends.

Tokens are the only messages whose number grows with steps. As calls to a Ray actor they cost both processes one to two
milliseconds of CPU time each, as much as a step of a small model, and every thread that wakes up to carry them takes
the interpreter lock from the engine thread. Here a step's tokens are one system call of the thread that has made them.
It never waits: what the socket does not take stays for the next time.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable

from llumnix.cluster.real import channel
from llumnix.cluster.real.messages import Address, Chunk, InstanceLost, News, NoAnswer

TICK_S = 0.05
"""What no step sends, because it was too soon after the one before, leaves after this time at the latest."""
_NUMBER = struct.Struct("!q")


class NewsServer:
    """Sends news to the last one who has called, at least `gather_s` apart, and at least every `silence_s`.

    `news(arrived, sent)` makes them: all items after number `sent`; those up to `arrived` can be forgotten.
    """

    def __init__(
        self,
        news: Callable[[int, int], News],
        host: str,
        *,
        gather_s: float,
        silence_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._news = news
        self._gather_s = gather_s
        self._silence_s = silence_s
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._unsent = b""
        self._acknowledgements = b""
        self._arrived = self._sent = 0  # numbers of items
        self._sent_s = 0.0
        self._listener, self.address = channel.listen(host)
        self._listener.settimeout(TICK_S)
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="news", daemon=True).start()

    def push(self, *, at_once: bool = False) -> None:
        """Send what is new, `at_once` or if nothing was sent for `gather_s`. Never waits; for any thread."""
        if self._connection is None or not self._lock.acquire(blocking=False):
            return
        try:
            if at_once or self._clock() - self._sent_s >= self._gather_s:
                self._send()
        except OSError:  # also that the other side has hung up
            self._hang_up()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Send no more and take no new connection."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread that accepts
        self._listener.close()
        with self._lock:
            self._hang_up()

    # --- inside

    def _run(self) -> None:
        """Take connections, and send what no step sends."""
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                self.push()
            except OSError:  # closed
                return
            else:
                threading.Thread(target=self._greet, args=(connection,), name="hello", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        """Let a caller in who knows the secret; whoever was connected before is cut off."""
        if not channel.let_in(connection, self.address):
            return
        connection.setblocking(False)
        with self._lock:
            self._hang_up()
            self._unsent = self._acknowledgements = b""
            self._arrived = self._sent = 0
            self._sent_s = 0.0
            self._connection = connection

    def _send(self) -> None:
        if self._connection is None:
            return
        self._read_acknowledgements(self._connection)
        now_s = self._clock()
        if not self._unsent:
            news = self._news(self._arrived, self._sent)
            if not news.items and now_s - self._sent_s < self._silence_s:
                return
            self._unsent = channel.framed(encode(news))
            self._sent = news.last
        with contextlib.suppress(BlockingIOError):
            self._unsent = self._unsent[self._connection.send(self._unsent) :]
        self._sent_s = now_s

    def _read_acknowledgements(self, connection: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data = connection.recv(1 << 12)
                if not data:
                    raise ConnectionResetError
                self._acknowledgements += data
        whole = len(self._acknowledgements) // _NUMBER.size * _NUMBER.size
        if whole:
            (self._arrived,) = _NUMBER.unpack(self._acknowledgements[whole - _NUMBER.size : whole])
            self._acknowledgements = self._acknowledgements[whole:]

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class NewsClient:
    """The front end's side. After an error it is of no use any more."""

    def __init__(self, address: Address, limit_s: float) -> None:
        """Connect; InstanceLost if nobody is there, NoAnswer after `limit_s`."""
        self._connection = channel.connect(address, limit_s)

    def poll(self, arrived: int, limit_s: float) -> News:
        """Say up to which number items have arrived, and return the next news.

        InstanceLost if the process is gone, NoAnswer after `limit_s`.
        """
        end_s = time.monotonic() + limit_s
        try:
            self._connection.settimeout(limit_s)
            self._connection.sendall(_NUMBER.pack(arrived))
            content = channel.message(self._connection, end_s)
        except TimeoutError:
            raise NoAnswer(f"there was no news for {limit_s:g} s") from None
        except (OSError, EOFError) as error:
            raise InstanceLost(f"the connection for news broke: {error}") from None
        return decode(content)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def encode(news: News) -> bytes:
    """Pickle news, chunks as bare tuples: a name for each of them would cost as much as all the rest."""
    items = [tuple(item) if type(item) is Chunk else item for item in news.items]
    return pickle.dumps(
        (news.incarnation, news.last, items, news.stuck_s, news.load, news.steps), pickle.HIGHEST_PROTOCOL
    )


def decode(content: bytes) -> News:
    """Read what `encode` has written."""
    incarnation, last, items, stuck_s, load, steps = pickle.loads(content)
    items = [Chunk._make(item) if type(item) is tuple else item for item in items]
    return News(incarnation, last, items, stuck_s, load, steps)
