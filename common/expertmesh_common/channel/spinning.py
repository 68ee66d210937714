"""Waiting for bytes without sleep: a process that the kernel has to wake answers tens of microseconds later."""

from __future__ import annotations

import os
import socket
import time
from typing import Final

MAX_SPIN_US: Final = 1_000_000


def receive_until(connection: socket.socket, into: memoryview, until: float) -> int | None:
    """Ask again and again for bytes until `until` (monotonic seconds); None if none came.

    Every try lets other threads of this process run, and other processes too where there is no core for them: the peer
    may be one. `connection` is a blocking socket without TLS. Returns and raises as its `recv_into`.
    """
    recv_into, clock = connection.recv_into, time.monotonic
    while clock() < until:
        try:
            return recv_into(into, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            os.sched_yield()
    return None
