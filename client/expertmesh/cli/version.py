"""`expertmesh version`: of this program, and of the mesh if one answers."""

from __future__ import annotations

import sys

import typer

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli.connecting import Json, Server, TlsFolder, Token, connect
from expertmesh.cli.output import print_json
from expertmesh.errors import ExpertmeshError
from expertmesh.version import __version__

ASK_S = 2.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("version")(version)


def version(
    as_json: Json = False, server: Server = DEFAULT_ADDRESS, token: Token = None, tls: TlsFolder = None
) -> None:
    """The version of this program and of the mesh."""
    found, why_not = None, ""
    try:
        with connect(server, token, tls, deadline_s=ASK_S) as client:
            found = client.mesh().version or "unknown (older than this question)"
    except ExpertmeshError as error:
        why_not = str(error)
    if as_json:
        return print_json({"client": __version__, "server": found, "server_error": why_not or None})
    sys.stdout.write(f"expertmesh {__version__}\n")
    answered = found if found is not None else "not asked" if not why_not else "no answer"
    sys.stdout.write(f"mesh at {server}: {answered}\n")
    return None
