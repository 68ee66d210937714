"""The further gateways of `expertmesh up`: where they listen, and the commands that run them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from expertmesh_controller.local.reaching import free_port, is_local_only


def further_listens(listen: str, gateways: int) -> tuple[str, ...]:
    """Addresses for `gateways - 1` more gateways beside the controller's: the ports after its own where they are free.

    `listen` is `host:port` or `unix:path`.
    """
    if listen.startswith("unix:"):
        return tuple(f"{listen}.{number}" for number in range(2, gateways + 1))
    host, _, port = listen.rpartition(":")
    found: list[int] = []
    for number in range(1, gateways):
        wanted = int(port) + number
        found.append(wanted if wanted not in found and _is_free(host, wanted) else free_port(host))
    return tuple(f"{host}:{port}" for port in found)


def dialled(listen: str) -> str:
    """How this machine's own processes reach what listens there."""
    return listen if is_local_only(listen) else f"127.0.0.1:{listen.rpartition(':')[2]}"


def gateway_arguments(number: int, listen: str, join: str, bundles: Sequence[tuple[str, Path]]) -> tuple[str, ...]:
    """The command of gateway `number` (2, 3, ...); it finds the bundles on this machine's disk."""
    local = tuple(part for _, folder in bundles for part in ("--model", str(folder)))
    return ("gateway", "--join", join, "--listen", listen, "--id", f"gateway-{number}", "--http-listen", "off", *local)


def _is_free(host: str, port: int) -> bool:
    if port > 65535:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
