"""The OpenAI door of `expertmesh up`: where it listens, and how a person points a client at it."""

from __future__ import annotations

from pathlib import Path

from expertmesh.local_access import access_folder
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.http_address import OFF, http_address
from expertmesh_controller.local.plan import UpRequest
from expertmesh_controller.local.reaching import free_port

__all__ = ["http_listen", "openai_line"]

_LOOPBACK = "127.0.0.1"


def http_listen(asked_port: str | None, listen: str, *, token: str | None, tls: Path | None) -> str | None:
    """`host:port` of the door, None for no door. `asked_port` is a number, 0 for any free one, `off`, or None.

    Without a wish, no door is opened that would have to let strangers in.

    Raises:
        InvalidInput: `asked_port` is no port.

    """
    if asked_port == OFF or (asked_port is None and tls is not None and token is None):
        return None
    host = _LOOPBACK if listen.startswith("unix:") else listen.rpartition(":")[0]
    if asked_port is None:
        address = http_address(None, listen)
    elif asked_port.isdigit() and int(asked_port) <= 65535:
        address = f"{host}:{asked_port}"
    else:
        raise InvalidInput(f"--http-port {asked_port!r}: expected a port, 0 for any free one, or {OFF}")
    return f"{host}:{free_port(host)}" if address is not None and address.endswith(":0") else address


def openai_line(request: UpRequest) -> str | None:
    """Variables that OpenAI's clients read, for a shell on this machine; None without a door.

    The token is not shown: the shell reads it from the file that `up` leaves for local clients.
    """
    if not request.openai_base_urls:
        return None
    parts = [f"OPENAI_BASE_URL={request.openai_base_urls[0]}", f"OPENAI_API_KEY={_key(request)}"]
    if request.tls is not None:
        parts.append(f"SSL_CERT_FILE={request.tls / 'ca.pem'}")
    return " ".join(parts)


def _key(request: UpRequest) -> str:
    if request.token is None:
        return "none"
    if request.listen.startswith("unix:"):
        return "TOKEN"
    return f"$(head -n1 {access_folder() / request.listen.rpartition(':')[2]})"
