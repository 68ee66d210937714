"""Where a controller or gateway process serves HTTP."""

from __future__ import annotations

from expertmesh_common.errors import InvalidInput

__all__ = ["OFF", "host_and_port", "http_address"]

OFF = "off"
_PORT_STEP = 10
"""From the gRPC port to this one by default: 7070 gives 7080, and a second process on one machine gets its own."""


def http_address(asked: str | None, listen: str) -> str | None:
    """`host:port`, or None for nowhere; `listen` is where the gRPC server listens.

    Raises:
        InvalidInput: `asked` is no address.

    """
    if asked is None:
        return _beside(listen)
    if asked == OFF:
        return None
    host_and_port(asked)
    return asked


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of `host:port`; brackets around an IPv6 host go.

    Raises:
        InvalidInput: it is something else.

    """
    host, separator, port = address.rpartition(":")
    if not separator or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise InvalidInput(f"--http-listen {address!r}: expected host:port, or {OFF}")
    return host.strip("[]"), int(port)


def _beside(listen: str) -> str | None:
    """The same host; a free port beside a free port; nothing beside a unix socket."""
    if listen.startswith("unix:"):
        return None
    host, _, port = listen.rpartition(":")
    if not port.isdigit() or not 0 < int(port) <= 65535 - _PORT_STEP:
        return f"{host}:0"
    return f"{host}:{int(port) + _PORT_STEP}"
