"""Ports for servers that a test starts itself, some time after it chose the number."""

from __future__ import annotations

import random
import socket

__all__ = ["port_to_be"]

BELOW_EPHEMERAL = range(20_000, 32_000)
"""Whoever binds port 0 meanwhile gets one of the kernel's range, which begins above (Linux: 32768)."""

_random = random.SystemRandom()


def port_to_be() -> int:
    """A port of 127.0.0.1 that is free now, and that nobody is given by chance before the test uses it."""
    for _ in range(100):
        port = _random.choice(BELOW_EPHEMERAL)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise AssertionError("no port is free")
