"""`expertmesh experts`: who holds what, as a map in the terminal."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli.connecting import Json, Server, TlsFolder, Token, connect
from expertmesh.cli.heatmap import Cell, HeatMap, heat_maps
from expertmesh.cli.output import console, print_json

# From missing to hottest: dark text on light ground, so that every cell stays readable on any terminal.
STYLES = ("bold white on red", "black on grey85", "black on light_cyan1", "black on yellow3", "black on orange1",
          "bold black on dark_orange")  # fmt: skip
MARGIN = len("layer") + 1


class Showing(StrEnum):
    """What a cell tells."""

    REPLICAS = "replicas"
    ROWS = "rows"
    WORKER = "worker"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("experts")(experts)


def experts(
    *,
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    by: Annotated[Showing, typer.Option(help="What a cell tells: copies, share of rows, or who.")] = Showing.REPLICAS,
    as_json: Json = False,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Where every expert lives, as a map.

    A row per layer, a column per expert. The map needs no colours: each cell has a number or the workers' letters.
    """
    with connect(server, token, tls) as client:
        found = client.experts(model)
    if as_json:
        return print_json(found)
    if not found:
        sys.stdout.write("no worker has experts to hold: no model is served, or gateways hold them whole\n")
    screen = console()
    for heat_map in heat_maps(found, by.value):
        show(screen, heat_map)
    return None


def show(screen: Console, heat_map: HeatMap) -> None:
    """Print a map; one that is too wide for the screen comes in blocks of columns."""
    cell_width = 1 + max(len(str(heat_map.columns - 1)), *(len(c.text) for row in heat_map.cells for c in row))
    per_block = max(1, (screen.width - MARGIN) // cell_width)
    experts_count = sum(len(row) for row in heat_map.cells)
    screen.print(f"{heat_map.model}: {experts_count} experts in {len(heat_map.layers)} layers", style="bold")
    for first in range(0, heat_map.columns, per_block):
        _show_block(screen, heat_map, range(first, min(first + per_block, heat_map.columns)), cell_width)
    for line in heat_map.legend:
        screen.print(f"  {line}")


def _show_block(screen: Console, heat_map: HeatMap, columns: range, cell_width: int) -> None:
    head = "layer".rjust(MARGIN - 1) + " " + "".join(str(column).rjust(cell_width) for column in columns)
    screen.print(head, style="bold", no_wrap=True)
    for layer, row in zip(heat_map.layers, heat_map.cells, strict=True):
        line = Text(str(layer).rjust(MARGIN - 1) + " ", no_wrap=True)
        for cell in row[columns.start : columns.stop]:
            line.append_text(_painted(cell, cell_width))
        screen.print(line)


def _painted(cell: Cell, width: int) -> Text:
    return Text(cell.text.rjust(width), style=STYLES[cell.level])
