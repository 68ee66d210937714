"""What a process that lets callers in must demand of them."""

from __future__ import annotations

from pathlib import Path

from expertmesh_common.errors import InvalidInput
from expertmesh_common.security import Security, TlsFiles
from expertmesh_controller.local.reaching import is_local_only


def security_for(listen: str, token: str | None, tls: Path | None) -> Security:
    """What callers must present at `listen`.

    Raises:
        InvalidInput: other machines could connect, and nothing is demanded of them; or a TLS file is missing.

    """
    if token is None and tls is None and not is_local_only(listen):
        raise InvalidInput(
            f"listening on {listen} lets other machines in: demand a token (--token or EXPERTMESH_TOKEN) "
            "or certificates (--tls), or listen on 127.0.0.1"
        )
    return Security(None if tls is None else TlsFiles.in_folder(tls), token)
