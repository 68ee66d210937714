"""The further gateways of `expertmesh up`: where they listen, and the commands that run them."""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence
from pathlib import Path

from expertmesh_controller.http_address import OFF
from expertmesh_controller.local.reaching import free_port, is_local_only


def further_listens(listen: str, gateways: int, besides: Collection[str] = ()) -> tuple[str, ...]:
    """Addresses for `gateways - 1` more gateways beside the controller's: the ports after its own where they are free.

    `listen` is `host:port` or `unix:path`; nothing listens on the ports of `besides` yet, but something will.
    """
    if listen.startswith("unix:"):
        return tuple(f"{listen}.{number}" for number in range(2, gateways + 1))
    host, _, port = listen.rpartition(":")
    taken = {_port(address) for address in (listen, *besides)}
    found: list[int] = []
    for number in range(1, gateways):
        wanted = int(port) + number
        while wanted in taken or not _is_free(host, wanted):
            wanted = free_port(host)
        taken.add(wanted)
        found.append(wanted)
    return tuple(f"{host}:{port}" for port in found)


def further_doors(door: str | None, listens: Sequence[str], first: str) -> tuple[str | None, ...]:
    """Where the OpenAI doors of the gateways that listen on `listens` are; `door` and `first` are the controller's.

    Its ports' successors where they are free; none where it has none.
    """
    if door is None:
        return (None,) * len(listens)
    return further_listens(door, len(listens) + 1, besides=(first, *listens))


def dialled(listen: str) -> str:
    """How this machine's own processes reach what listens there."""
    return listen if is_local_only(listen) else f"127.0.0.1:{listen.rpartition(':')[2]}"


def gateway_arguments(
    number: int, listen: str, door: str | None, join: str, bundles: Sequence[tuple[str, Path]]
) -> tuple[str, ...]:
    """The command of gateway `number` (2, 3, ...); it finds the bundles on this machine's disk."""
    local = tuple(part for _, folder in bundles for part in ("--model", str(folder)))
    return (
        "gateway", "--join", join, "--listen", listen, "--http-listen", door or OFF, "--id", f"gateway-{number}",
        *local,
    )  # fmt: skip


def _port(listen: str) -> int | None:
    return None if listen.startswith("unix:") else int(listen.rpartition(":")[2])


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
