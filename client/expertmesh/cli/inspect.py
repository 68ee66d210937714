"""`expertmesh nodes`, `experts`, `models` and `version`: what is there."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli.connecting import Json, Server, TlsFolder, Token, connect
from expertmesh.types import ExpertPlacement
from expertmesh.version import __version__

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MB = 1e6


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("nodes")(nodes)
    app.command("experts")(experts)
    app.command("models")(models)
    app.command("version")(version)


def nodes(as_json: Json = False, server: Server = DEFAULT_ADDRESS, token: Token = None, tls: TlsFolder = None) -> None:
    """The workers: what they hold, what they may hold, what they have done."""
    with connect(server, token, tls) as client:
        found = client.nodes()
    if as_json:
        return _print_json(found)
    rows = [
        (n.worker_id, n.state, n.experts, f"{n.resident_bytes / MB:.1f}", f"{n.budget_bytes / MB:.1f}", n.rows,
         f"{n.speed_rows_per_s:.0f}", n.heartbeat_age_ms)
        for n in found
    ]  # fmt: skip
    return _print_table(
        ("worker", "state", "experts", "resident MB", "budget MB", "rows", "rows/s", "heartbeat ms ago"), rows
    )


def experts(
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    as_json: Json = False,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Where every expert lives, one line per layer; an expert on several workers has replicas."""
    with connect(server, token, tls) as client:
        found = client.experts(model)
    if as_json:
        return _print_json(found)
    return _print_table(("model", "layer", "experts on workers"), _by_layer(found))


def models(as_json: Json = False, server: Server = DEFAULT_ADDRESS, token: Token = None, tls: TlsFolder = None) -> None:
    """The served models."""
    with connect(server, token, tls) as client:
        found = client.models()
    if as_json:
        return _print_json(found)
    rows = [(m.name, m.family, m.precision, m.context_tokens, "yes" if m.ready else "no") for m in found]
    return _print_table(("model", "family", "precision", "context tokens", "ready"), rows)


def version() -> None:
    """The version of this program."""
    sys.stdout.write(f"expertmesh {__version__}\n")


def _by_layer(found: Iterable[ExpertPlacement]) -> list[tuple[object, ...]]:
    layers: dict[tuple[str, int], list[ExpertPlacement]] = defaultdict(list)
    for expert in found:
        layers[expert.model, expert.layer].append(expert)
    return [
        (model, layer, "  ".join(f"{e.index}:{'+'.join(e.worker_ids) or '-'}" for e in members))
        for (model, layer), members in sorted(layers.items())
    ]


def _print_json(found: Sequence[DataclassInstance]) -> None:
    json.dump([asdict(item) for item in found], sys.stdout)
    sys.stdout.write("\n")


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
