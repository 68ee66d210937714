"""Where the gateways of a mesh are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.errors import InvalidRequest

ENVIRONMENT_NAME = "EXPERTMESH_ADDRESS"


def addresses_of(given: str | Sequence[str] | None, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The addresses in `given`, which may hold several with commas between them; each once, in order.

    None takes `$EXPERTMESH_ADDRESS`, and without that the usual address on this machine.

    Raises:
        InvalidRequest: there is none, or one is neither `host:port` nor `unix:path`.

    """
    if given is None:
        given = (os.environ if environment is None else environment).get(ENVIRONMENT_NAME) or DEFAULT_ADDRESS
    parts = [given] if isinstance(given, str) else list(given)
    found = [address.strip() for part in parts for address in part.split(",") if address.strip()]
    if not found:
        raise InvalidRequest("address is empty: give host:port or unix:path, or several of them")
    return tuple(dict.fromkeys(_checked(address) for address in found))


def _checked(address: str) -> str:
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InvalidRequest(f"address {address!r} is neither host:port nor unix:path")
    return address
