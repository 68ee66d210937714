"""`expertmesh nodes`: the workers."""

from __future__ import annotations

import sys

import typer

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli.connecting import Json, Server, TlsFolder, Token, connect
from expertmesh.cli.output import megabytes, print_json, print_table
from expertmesh.types import Node

COLUMNS = ("worker", "state", "experts", "MB", "of MB", "rows", "rows/s", "cores", "heard")
NUMBERS = ("experts", "MB", "of MB", "rows", "rows/s", "cores", "heard")
NOBODY = "no worker has joined; `expertmesh up` prints the line that adds one\n"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("nodes")(nodes)


def nodes(as_json: Json = False, server: Server = DEFAULT_ADDRESS, token: Token = None, tls: TlsFolder = None) -> None:
    """The workers, and what they hold.

    MB of experts (of the budget), rows served since their start, and the speed measured when they joined.
    """
    with connect(server, token, tls) as client:
        found = client.nodes()
    if as_json:
        return print_json(found)
    if not found:
        sys.stdout.write(NOBODY)
        return None
    return print_table(COLUMNS, [_row(node) for node in found], numbers=NUMBERS)


def _row(node: Node) -> tuple[object, ...]:
    return (
        node.worker_id, node.state, node.experts, megabytes(node.resident_bytes), megabytes(node.budget_bytes),
        node.rows, f"{node.speed_rows_per_s:.0f}", node.cores, f"{node.heartbeat_age_ms / 1000:.1f} s ago",
    )  # fmt: skip
