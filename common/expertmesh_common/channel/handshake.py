"""The first bytes of a stream connection: the caller shows the ticket that gRPC gave it, the worker says yes or no.

Caller: magic "EXMT", version uint8, 3 zero bytes, ticket (32 bytes). Worker: magic "EXMT", version uint8, verdict
uint8 (0 accepted, 1 refused), 2 zero bytes. Frames follow after an accepted ticket.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from expertmesh_common.channel.layout import VERSION
from expertmesh_common.errors import CorruptData, Unauthenticated, Unavailable

TICKET_BYTES: Final = 32
TICKET_LIFE_S: Final = 10.0
_MAGIC: Final = b"EXMT"
_HELLO: Final = struct.Struct(f"<4sB3s{TICKET_BYTES}s")
_ANSWER: Final = struct.Struct("<4sBB2s")
_ACCEPTED, _REFUSED = 0, 1


def present(connection: socket.socket, ticket: bytes) -> None:
    """Caller's half.

    Raises:
        Unauthenticated: the worker refused the ticket.
        CorruptData: whoever answered does not speak this protocol.
        Unavailable: the connection ended.
        OSError: the connection failed or timed out.

    """
    connection.sendall(_HELLO.pack(_MAGIC, VERSION, b"", ticket))
    magic, version, verdict, _ = _ANSWER.unpack(_receive(connection, _ANSWER.size))
    if magic != _MAGIC or version != VERSION:
        raise CorruptData(
            f"stream handshake answered with magic {magic!r} version {version}, expected {_MAGIC!r} {VERSION}"
        )
    if verdict != _ACCEPTED:
        raise Unauthenticated("the worker refused the stream ticket: it is unknown, used or older than 10 s")


def read_ticket(connection: socket.socket) -> bytes:
    """Worker's half, first step: the ticket. Raises as `present`."""
    magic, version, _, ticket = _HELLO.unpack(_receive(connection, _HELLO.size))
    if magic != _MAGIC or version != VERSION:
        raise CorruptData(
            f"stream handshake began with magic {magic!r} version {version}, expected {_MAGIC!r} {VERSION}"
        )
    return bytes(ticket)


def answer(connection: socket.socket, accepted: bool) -> None:
    """Worker's half, second step: the verdict."""
    connection.sendall(_ANSWER.pack(_MAGIC, VERSION, _ACCEPTED if accepted else _REFUSED, b""))


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise Unavailable(f"the connection ended in the stream handshake after {len(data)} of {count} bytes")
        data += part
    return data
