"""Sockets between processes of a cluster, beside Ray: who knows the secret gets in, messages have their length before.

For messages that cannot wait for a call to a Ray actor (1 to 2 ms each way) or are too many for it: tokens, and the
calls of calls.py. Address and secret go through Ray.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
import time

from llumnix.cluster.real.messages import Address, InstanceLost, NoAnswer

SECRET_BYTES = 32
HELLO_S = 10.0
"""How long a new connection has for its secret."""
_SIZE = struct.Struct("!q")


def listen(host: str) -> tuple[socket.socket, Address]:
    """Open a port on `host`."""
    listener = socket.create_server((host, 0))
    return listener, Address(host, listener.getsockname()[1], secrets.token_bytes(SECRET_BYTES))


def let_in(connection: socket.socket, address: Address) -> bool:
    """Take a caller's secret; False, and the connection is closed, if it is wrong or does not come."""
    try:
        connection.settimeout(HELLO_S)
        if not hmac.compare_digest(exactly(connection, SECRET_BYTES), address.secret):
            raise ConnectionRefusedError
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, EOFError):
        connection.close()
        return False
    return True


def connect(address: Address, limit_s: float) -> socket.socket:
    """Call a process; InstanceLost if nobody is there, NoAnswer after `limit_s`."""
    try:
        connection = socket.create_connection((address.host, address.port), limit_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(address.secret)
    except TimeoutError:
        raise NoAnswer(f"{address.host}:{address.port} did not answer within {limit_s:g} s") from None
    except OSError as error:
        raise InstanceLost(f"{address.host}:{address.port}: {error}") from None
    return connection


def framed(content: bytes) -> bytes:
    """Put the length before a message."""
    return _SIZE.pack(len(content)) + content


def message(connection: socket.socket, end_s: float | None = None) -> bytes:
    """Read one message; EOFError if the other side hangs up, TimeoutError after `end_s` (monotonic)."""
    (size,) = _SIZE.unpack(exactly(connection, _SIZE.size, end_s))
    return exactly(connection, size, end_s)


def exactly(connection: socket.socket, size: int, end_s: float | None = None) -> bytes:
    """Read exactly `size` bytes; errors as for `message`."""
    data = bytearray()
    while len(data) < size:
        if end_s is not None:
            connection.settimeout(max(1e-3, end_s - time.monotonic()))
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError("the other side hung up")
        data += part
    return bytes(data)
