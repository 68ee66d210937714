"""What a person sees of `expertmesh up`: progress, the result, how to add a machine; all on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from expertmesh.types import Node
from expertmesh_common.bundle.manifest import Manifest
from expertmesh_controller.local.plan import UpRequest
from expertmesh_controller.local.reaching import is_local_only, reachable_host

MB = 1e6


@contextlib.contextmanager
def loading(console: Console, manifest: Manifest) -> Iterator[Callable[[tuple[Node, ...]], None]]:
    """A bar of loaded expert instances over the unique experts; without a terminal, one line at the start."""
    experts = sum(len(layer.experts) for layer in manifest.layers)
    if not console.is_terminal:
        console.print(f"starting: {manifest.name}, {experts} experts in {len(manifest.layers)} layers")
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting the controller", total=experts)

        def show(nodes: tuple[Node, ...]) -> None:
            held = sum(node.experts for node in nodes)
            bar.update(task, completed=min(held, experts), description=f"{len(nodes)} workers, {held} expert copies")

        yield show


def summarise(console: Console, manifest: Manifest, request: UpRequest, nodes: Sequence[Node]) -> None:
    """What runs where, and how to use it."""
    table = Table(box=None, pad_edge=False)
    for column in ("worker", "experts", "resident MB", "budget MB", "rows/s"):
        table.add_column(column, overflow="fold")
    for node in nodes:
        table.add_row(
            node.worker_id, str(node.experts), f"{node.resident_bytes / MB:.1f}", f"{node.budget_bytes / MB:.1f}",
            f"{node.speed_rows_per_s:.0f}",
        )  # fmt: skip
    console.print(table)
    console.print(f"{manifest.name} ({request.precision}) is served on {request.dial_address}")
    console.print(f'  ask it:         expertmesh generate{_server(request)} "What is the capital of France?"')
    if not is_local_only(request.listen):
        console.print(f"  add a machine:  {join_line(request)}")
        if request.tls is not None:
            console.print(f"                  (copy {request.tls} there first)")


def join_line(request: UpRequest) -> str:
    """The command that adds a second machine."""
    port = request.listen.rpartition(":")[2]
    parts = ["expertmesh worker --join", f"{reachable_host()}:{port}"]
    if request.token is not None:
        parts.append(f"--token {request.token}")
    if request.tls is not None:
        parts.append(f"--tls {request.tls.name}")
    return " ".join(parts)


def _server(request: UpRequest) -> str:
    return "" if request.dial_address == "127.0.0.1:7070" else f" --server {request.dial_address}"
