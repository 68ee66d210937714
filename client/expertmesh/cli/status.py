"""`expertmesh status`: the whole mesh on one screen."""

from __future__ import annotations

import typer
from rich.console import Console

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli.connecting import Json, Server, TlsFolder, Token, connect
from expertmesh.cli.failures import FAILED
from expertmesh.cli.output import console, counted, megabytes, print_json, print_table
from expertmesh.cli.overview import ModelState, Overview, Seen, overview
from expertmesh.client import Client


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(as_json: Json = False, server: Server = DEFAULT_ADDRESS, token: Token = None, tls: TlsFolder = None) -> None:
    """The mesh on one screen, and what it lacks.

    Ends with code 1 while something is missing, so that scripts may wait for it.
    """
    with connect(server, token, tls) as client:
        seen = overview(server, look(client))
    if as_json:
        print_json(seen)
    else:
        _show(seen)
    if not seen.ready:
        raise typer.Exit(FAILED)


def look(client: Client) -> Seen:
    """Ask for everything that an overview needs."""
    return Seen(client.mesh(), client.models(), client.nodes(), client.experts(), client.served_models())


def _show(seen: Overview) -> None:
    screen = console()
    _show_head(screen, seen)
    for model in seen.models:
        screen.print(f"  {_model_line(model)}")
        for line in model.target_lines:
            screen.print(f"    target {line}", style="bold red" if line.startswith("missed") else None)
    screen.print(f"\n{counted(len(seen.workers), 'worker')}", style="bold")
    if seen.workers:
        rows = [
            (f"  {w.worker_id}", w.state, w.experts, megabytes(w.resident_bytes), megabytes(w.budget_bytes), w.rows)
            for w in seen.workers
        ]
        print_table(
            ("  worker", "state", "experts", "MB", "of MB", "rows"), rows, numbers=("experts", "MB", "of MB", "rows")
        )
    screen.print("\nmissing", style="bold")
    for sentence in seen.missing or ("nothing",):
        screen.print(f"  {sentence}")


def _show_head(screen: Console, seen: Overview) -> None:
    word, style = ("ready", "bold green") if seen.ready else ("not ready", "bold red")
    term, change = seen.epoch
    screen.print(f"mesh at {seen.address}: ", end="", style="bold")
    screen.print(word, end="", style=style)
    screen.print(f"   version {seen.version or 'unknown'}, epoch {term}.{change}")
    screen.print(f"\n{counted(len(seen.models), 'model')}", style="bold")


def _model_line(model: ModelState) -> str:
    state = "ready" if model.ready else "not ready"
    return (
        f"{model.name} ({model.precision}): {state}, {model.experts} experts, {model.copies} copies, "
        f"context {model.context_tokens} tokens"
    )
