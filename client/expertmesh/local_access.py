"""Access to meshes that run on this machine for this user, so that `Client("localhost:7070")` just works.

`expertmesh up` demands a token because other machines may join; it leaves the token, and the folder of certificates if
there is one, in a file that only its user can read, named after the port, and takes the file away when it ends.
"""

from __future__ import annotations

import os
from pathlib import Path

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def home_folder() -> Path:
    """Where expertmesh keeps what belongs to this user: `$EXPERTMESH_HOME`, by default `~/.expertmesh`."""
    home = os.environ.get("EXPERTMESH_HOME")
    return Path(home) if home else Path.home() / ".expertmesh"


def access_folder() -> Path:
    """The folder of left tokens, one file per port."""
    return home_folder() / "access"


def local_token(address: str) -> str | None:
    """The token for a loopback `host:port`, if a mesh of this user left one."""
    return _left(address)[0] or None


def local_tls_folder(address: str) -> Path | None:
    """The folder of certificates for a loopback `host:port`, if a mesh of this user left one."""
    folder = _left(address)[1]
    return Path(folder) if folder else None


def _left(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    if host not in _LOOPBACK or not port.isdigit():
        return "", ""
    try:
        token, folder, *_ = [*(access_folder() / port).read_text(encoding="utf-8").splitlines(), "", ""]
    except OSError:
        return "", ""
    return token.strip(), folder.strip()


def leave_token(port: int, token: str, tls_folder: Path | None = None) -> Path:
    """Write the token for `port`, readable by this user only; returns the file to remove at the end."""
    folder = access_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / str(port)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{token}\n{tls_folder or ''}\n")
    return path
