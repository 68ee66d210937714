"""What a person sees of `expertmesh up`: progress, the result, how to add a machine; all on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from expertmesh.types import Node
from expertmesh_controller.cluster.local_layers import NONE
from expertmesh_controller.local.local_model import LocalModel
from expertmesh_controller.local.openai_line import openai_line
from expertmesh_controller.local.plan import UpRequest
from expertmesh_controller.local.reaching import is_local_only, reachable_host

MB = 1e6


@contextlib.contextmanager
def loading(
    console: Console, models: Sequence[LocalModel], request: UpRequest
) -> Iterator[Callable[[tuple[Node, ...]], None]]:
    """A bar of loaded expert instances over the unique experts of workers; without a terminal, a line at the start."""
    experts = sum(model.experts_elsewhere(request.numerics, request.local_layers) for model in models)
    if not console.is_terminal:
        shown = ", ".join(f"{m.name}, {m.experts} experts in {len(m.manifest.layers)} layers" for m in models)
        console.print(f"starting: {shown}")
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting the controller", total=experts)

        def show(nodes: tuple[Node, ...]) -> None:
            held = sum(node.experts for node in nodes)
            bar.update(task, completed=min(held, experts), description=f"{len(nodes)} workers, {held} expert copies")

        yield show


def summarise(console: Console, models: Sequence[LocalModel], request: UpRequest, nodes: Sequence[Node]) -> None:
    """What runs where, and how to use it."""
    table = Table(box=None, pad_edge=False)
    for column in ("worker", "experts", "resident MB", "budget MB", "rows/s"):
        table.add_column(column, overflow="fold")
    for node in nodes:
        table.add_row(
            node.worker_id, str(node.experts), f"{node.resident_bytes / MB:.1f}", f"{node.budget_bytes / MB:.1f}",
            f"{node.speed_rows_per_s:.0f}",
        )  # fmt: skip
    if nodes:
        console.print(table)
    several = len(models) > 1
    names = ", ".join(model.name for model in models)
    where = " and ".join(request.dial_addresses)
    how = request.precision if request.numerics == "exact" else f"{request.precision}, fast{_where(request)}"
    console.print(f"{names} ({how}) {'are' if several else 'is'} served on {where}")
    if request.gateways:
        console.print(f"  ask any:        export EXPERTMESH_ADDRESS={','.join(request.dial_addresses)}")
    chosen = f" --model {models[0].name}" if several else ""
    console.print(f'  ask it:         expertmesh generate{_server(request)}{chosen} "What is the capital of France?"')
    if (variables := openai_line(request)) is not None:
        console.print(f"  OpenAI clients: {variables}")
        for url in request.openai_base_urls[1:]:
            console.print(f"                  or OPENAI_BASE_URL={url}")
    if not is_local_only(request.listen):
        console.print(f"  add a machine:  {join_line(request)}")
        if request.tls is not None:
            console.print(f"                  (copy {request.tls} there first)")


def _where(request: UpRequest) -> str:
    """Where numerics `fast` are, if not everywhere in the gateway."""
    if request.local_layers == NONE:
        return " on workers"
    return f" in the gateway for layers {request.local_layers}" if request.local_layers else ""


def join_line(request: UpRequest) -> str:
    """The command that adds a second machine; its token can join and fetch blobs, no more."""
    port = request.listen.rpartition(":")[2]
    parts = ["expertmesh worker --join", f"{reachable_host()}:{port}"]
    if request.join_token is not None:
        parts.append(f"--token {request.join_token}")
    if request.tls is not None:
        parts.append(f"--tls {request.tls.name}")
    return " ".join(parts)


def _server(request: UpRequest) -> str:
    return "" if request.dial_address == "127.0.0.1:7070" else f" --server {request.dial_address}"
