"""Moving whole frames over a blocking stream socket: one `sendmsg` out, usually one `recv` in."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Sequence

from expertmesh_common.channel.frame import MAX_FRAME_BYTES, frame_bytes
from expertmesh_common.channel.layout import HEADER_BYTES, Chunk, chunk_bytes
from expertmesh_common.channel.spinning import receive_until
from expertmesh_common.errors import CorruptData

FIRST_BUFFER_BYTES = 256 * 1024
JOIN_BYTES = 16 * 1024  # below this a copy and `send` are quicker than `sendmsg`
MIN_TIMEOUT_S = 0.001  # 0 would mean for ever
_TIMEVAL = struct.Struct("@ll")


class FrameSocket:
    """A connection that carries frames, one at a time in each direction. Not for use by two threads at once.

    Plain sockets stay blocking with the kernel's own timeouts, which saves a poll per call; TLS needs Python's.
    With `spin_us` a plain one polls for so many microseconds of every `receive` before it sleeps; TLS never does.
    """

    def __init__(self, connection: socket.socket, limit: int = MAX_FRAME_BYTES, *, spin_us: int = 0) -> None:
        if connection.family in {socket.AF_INET, socket.AF_INET6}:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _notice_dead_peers(connection)
        connection.settimeout(None)
        self.connection = connection
        self._limit = limit
        self._buffer = memoryview(bytearray(FIRST_BUFFER_BYTES))
        self._tls = isinstance(connection, ssl.SSLSocket)
        self._timeout_s = 0.0  # what the kernel has, 0 for none
        self._expires_at = float("inf")
        self._spin_s = 0.0 if self._tls else spin_us / 1e6
        self._spin_until = 0.0

    def expire_at(self, expires_at: float) -> None:
        """Give up what follows at `expires_at` (monotonic seconds), at most a quarter of the time left later."""
        self._expires_at = expires_at
        left_s = max(expires_at - time.monotonic(), MIN_TIMEOUT_S)
        if self._tls:
            self.connection.settimeout(left_s)
        elif not left_s <= self._timeout_s <= left_s * 1.25:
            self._timeout_s = left_s * 1.1  # so that the next, equal time finds it still right
            seconds, rest = divmod(self._timeout_s, 1)
            value = _TIMEVAL.pack(int(seconds), int(rest * 1e6))
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def send(self, chunks: Sequence[Chunk]) -> int:
        """Send one frame; returns its bytes. Raises OSError (TimeoutError included) when the connection fails."""
        total = chunk_bytes(chunks)
        try:
            if total <= JOIN_BYTES or self._tls:  # TLS has no scatter-gather
                self.connection.sendall(b"".join(chunks))
            else:
                self._send_parts(chunks, total)
        except BlockingIOError:  # how the kernel's timeout shows
            raise TimeoutError(f"a frame of {total} bytes was not taken in time") from None
        return total

    def send_whole(self, frame: bytes) -> None:
        """Send one frame that lies in one piece. Raises as `send`."""
        try:
            self.connection.sendall(frame)
        except BlockingIOError:
            raise TimeoutError(f"a frame of {len(frame)} bytes was not taken in time") from None

    def _send_parts(self, chunks: Sequence[Chunk], total: int) -> None:
        """One `sendmsg`, and the rest, if any, chunk by chunk."""
        sent = self.connection.sendmsg(chunks)
        if sent == total:
            return
        for chunk in chunks:
            size = chunk_bytes((chunk,))
            if sent < size:
                self.connection.sendall(memoryview(chunk).cast("B")[sent:])
            sent = max(0, sent - size)

    def receive(self) -> memoryview | None:
        """The next frame, valid until the next call; None when the peer has closed between frames.

        Raises:
            CorruptData: the bytes are no frame, are longer than the limit, or end in the middle.
            OSError: the connection failed or timed out.

        """
        if self._spin_s:
            self._spin_until = min(time.monotonic() + self._spin_s, self._expires_at)
        have = self._read(self._buffer)
        if not have:
            return None
        have = self._fill(have, HEADER_BYTES)
        total = frame_bytes(self._buffer[:HEADER_BYTES], self._limit)
        if have == total:
            return self._buffer[:total]
        if have > total:
            raise CorruptData(f"{have - total} bytes follow a frame of {total}: only one frame may be under way")
        if total > len(self._buffer):
            self._grow(total, have)
        self._fill(have, total)
        return self._buffer[:total]

    def _fill(self, have: int, wanted: int) -> int:
        """Read until at least `wanted` bytes are there; how many there are."""
        while have < wanted:
            if time.monotonic() > self._expires_at:
                raise TimeoutError(f"{have} of {wanted} bytes of a frame came in time")
            count = self._read(self._buffer[have:])
            if not count:
                raise CorruptData(f"the connection ended after {have} of {wanted} bytes of a frame")
            have += count
        return have

    def _read(self, into: memoryview) -> int:
        count = self._spin(into) if self._spin_s else None
        if count is not None:
            return count
        try:
            return self.connection.recv_into(into)
        except BlockingIOError:  # how the kernel's timeout shows
            raise TimeoutError("no bytes came in time") from None

    def _spin(self, into: memoryview) -> int | None:
        """Bytes read by polling; None when the time for that is over."""
        count = receive_until(self.connection, into, self._spin_until)
        if count is None and self._expires_at < float("inf"):
            self.expire_at(self._expires_at)  # the kernel's timeout starts with the call that sleeps
        return count

    def _grow(self, total: int, have: int) -> None:
        larger = memoryview(bytearray(total))
        larger[:have] = self._buffer[:have]
        self._buffer = larger

    def close(self) -> None:
        self.connection.close()


def _notice_dead_peers(connection: socket.socket) -> None:
    """A machine that lost its power says nothing: have the kernel ask, and end the connection within 10 s."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000)):
        option = getattr(socket, name, None)  # not every system has all of them
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
