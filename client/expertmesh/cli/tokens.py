"""`expertmesh tokens`: who may do what in the mesh, and who changed what."""

from __future__ import annotations

import re
import secrets
import sys
from typing import Annotated

import typer

from expertmesh.access import AUDIT_ENTRIES, Access, when
from expertmesh.channel import DEFAULT_ADDRESS, Tls
from expertmesh.cli.connecting import Json, Server, TlsFolder, Token
from expertmesh.cli.output import print_json, print_table
from expertmesh.errors import InvalidRequest

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
KEEP_IT = "this is shown once; keep it where only its user can read it\n"


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="Tokens: who may do what; and the audit of changes.", no_args_is_help=True)
    group.command("create")(create)
    group.command("list")(list_tokens)
    group.command("revoke")(revoke)
    group.command("audit")(audit)
    group.command("new")(new)
    app.add_typer(group, name="tokens")


def create(
    name: Annotated[str, typer.Argument(help="Whom it is for: letters, digits, dots, dashes.")],
    *,
    scope: Annotated[list[str], typer.Option("--scope", "-s", help="infer, operate, admin or join; may be repeated.")],
    ttl: Annotated[str, typer.Option(help="How long it is good, such as 30d or 12h; 0: until it is revoked.")] = "0",
    as_json: Json = False,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Give out a token.

    infer: ask models. operate: that, and see the mesh. admin: everything. join: be a worker or a gateway.
    """
    with _access(server, token, tls) as access:
        made = access.create(name, scope, ttl_s=seconds(ttl))
    if as_json:
        return print_json({"token": made.token, "info": made.info})
    sys.stdout.write(f"{made.token}\n")
    sys.stderr.write(KEEP_IT)
    return None


def list_tokens(
    as_json: Json = False, server: Server = DEFAULT_ADDRESS, token: Token = None, tls: TlsFolder = None
) -> None:
    """The tokens, also those that ended lately; never their secrets."""
    with _access(server, token, tls) as access:
        found = access.tokens()
    if as_json:
        return print_json(found)
    rows = [(t.id, t.name, ", ".join(t.scopes), t.state, when(t.created_s), when(t.expires_s)) for t in found]
    return print_table(("id", "name", "scopes", "state", "created", "expires"), rows)


def revoke(
    token_id: Annotated[str, typer.Argument(help="Its id: the part of a token between the first two underscores.")],
    as_json: Json = False,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Take a token back; its running answers and streams end within a second."""
    with _access(server, token, tls) as access:
        ended = access.revoke(token_id)
    if as_json:
        return print_json(ended)
    sys.stdout.write(f"{ended.name} ({ended.id}) is revoked\n")
    return None


def audit(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many entries.")] = AUDIT_ENTRIES,
    as_json: Json = False,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Who changed what, newest last."""
    with _access(server, token, tls) as access:
        found = access.audit(limit)
    if as_json:
        return print_json(found)
    rows = [
        (when(e.at_s), e.token_name, e.token_id, e.peer, e.method, e.arguments_digest[:12], e.result) for e in found
    ]
    return print_table(("time", "token", "id", "from", "call", "arguments", "result"), rows)


def new() -> None:
    """Make a random token for --token or --join-token of a controller; no mesh is asked."""
    sys.stdout.write(f"em_{secrets.token_hex(5)}_{secrets.token_urlsafe(24)}\n")


def seconds(text: str) -> float:
    """A time such as `90s`, `15m`, `12h`, `30d` or `0`, in seconds.

    Raises:
        InvalidRequest: it is not one.

    """
    found = re.fullmatch(r"(\d+)([smhd]?)", text)
    if found is None:
        raise InvalidRequest(f"--ttl {text!r}: write a number with s, m, h or d, such as 12h")
    return int(found[1]) * UNITS_S[found[2] or "s"]


def _access(server: str, token: str | None, tls: object) -> Access:
    return Access(server, token=token, tls=None if tls is None else Tls.in_folder(str(tls)))
