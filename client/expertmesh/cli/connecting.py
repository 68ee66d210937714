"""The options that every client command shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertmesh.channel import DEFAULT_ADDRESS, Tls
from expertmesh.client import DEFAULT_DEADLINE_S, Client

Server = Annotated[
    str,
    typer.Option(
        "--server",
        envvar=["EXPERTMESH_SERVER", "EXPERTMESH_ADDRESS"],
        help="Address of the mesh: host:port or unix:path; several with commas.",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", envvar="EXPERTMESH_TOKEN", help="What the mesh demands; not needed for one that you run here."
    ),
]
TlsFolder = Annotated[
    Path | None, typer.Option("--tls", envvar="EXPERTMESH_TLS", help="Folder with ca.pem, cert.pem and key.pem.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def connect(
    server: str = DEFAULT_ADDRESS,
    token: str | None = None,
    tls: Path | None = None,
    *,
    deadline_s: float = DEFAULT_DEADLINE_S,
) -> Client:
    """A client from the shared options."""
    folder = None if tls is None else Tls.in_folder(tls)
    return Client(server, token=token, tls=folder, deadline_s=deadline_s)
