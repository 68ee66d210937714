"""Addresses: which one of this machine others can dial, and which ports are free."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket

import psutil

_BELOW_EPHEMERAL = range(20_000, 32_000)
"""Linux gives connections ports from 32768 on."""
_TRIES = 32
_random = random.SystemRandom()
_LOOPBACK_NAMES = frozenset({"localhost"})


def is_local_only(address: str) -> bool:
    """Whether only this machine can dial what listens there."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in _LOOPBACK_NAMES


def reachable_host() -> str:
    """The address other machines most likely reach this one by: that of the default route, else of any interface."""
    return _routed_host() or _interface_host() or "127.0.0.1"


def _routed_host() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address; connecting a datagram socket sends nothing
        except OSError:
            return None
        host = str(probe.getsockname()[0])
    return None if ipaddress.ip_address(host).is_loopback else host


def _interface_host() -> str | None:
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = [
        entry.address
        for name, entries in sorted(psutil.net_if_addrs().items())
        for entry in entries
        if name in up and entry.family == socket.AF_INET and not ipaddress.ip_address(entry.address).is_loopback
    ]
    return found[0] if found else None


def free_port(host: str) -> int:
    """A TCP port that nobody uses on `host` now.

    If there is one, it lies where the kernel takes none for connections: a process that was killed must find its port
    free when it is started again.
    """
    for port in _random.sample(_BELOW_EPHEMERAL, _TRIES):
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, port))
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
