"""`expertmesh models`: what the mesh serves; more of it, or less."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli.connecting import Json, Server, TlsFolder, Token, connect
from expertmesh.cli.failures import FAILED
from expertmesh.cli.output import counted, megabytes, print_json, print_table
from expertmesh.cli.targets import target_lines, targets_word
from expertmesh.client import Client
from expertmesh.errors import DeadlineExceeded
from expertmesh.operating import DRAIN_S, ModelStatus, SlaTarget

COLUMNS = ("model", "state", "precision", "experts", "copies", "MB", "missing MB", "share", "requests", "targets")
NUMBERS = ("experts", "copies", "MB", "missing MB", "share", "requests")
NOTHING = "no model is served; `expertmesh models serve PATH` serves one\n"
SERVE_S = 300.0
LOOK_S = 2.0
ENOUGH_LOOKS = 3


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="The models of the mesh: list, serve, unserve.", no_args_is_help=True)
    group.command("list")(list_models)
    group.command("serve")(serve)
    group.command("unserve")(unserve)
    app.add_typer(group, name="models")


def list_models(
    as_json: Json = False, server: Server = DEFAULT_ADDRESS, token: Token = None, tls: TlsFolder = None
) -> None:
    """The models, and how far each one is.

    Copies of its experts, their MB, the MB without room, its share of all workers' budgets, requests under way, and
    whether its targets are met, missed or unseen: no answer tells.
    """
    with connect(server, token, tls) as client:
        found = client.served_models()
    if as_json:
        return print_json(found)
    if not found:
        sys.stdout.write(NOTHING)
        return None
    print_table(COLUMNS, [_row(model) for model in found], numbers=NUMBERS)
    for model in found:
        for line in target_lines(model):
            sys.stdout.write(f"  {model.name}: {line}\n")
        if model.error:
            sys.stdout.write(f"  {model.name}: {model.error}\n")
    return None


def serve(
    path: Annotated[str, typer.Argument(help="Folder of the bundle, on the controller's machine.")],
    *,
    name: Annotated[str, typer.Option(help="What requests call it; default: the bundle's name.")] = "",
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8 or int4; default: the controller's.")] = "",
    numerics: Annotated[
        str, typer.Option(help="exact, or fast: gateways hold the whole model, by default; default: the controller's.")
    ] = "",
    local_layers: Annotated[
        str,
        typer.Option(help="With fast: only these layers' experts in the gateways, as in 0,3,8-11, or all, or none."),
    ] = "",
    budget_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Most that its experts may take of all workers' budgets.")
    ] = 1.0,
    slots: Annotated[int, typer.Option(min=0, help="Answers in progress at once; 0: the controller's.")] = 0,
    ttft_p95_ms: Annotated[float, typer.Option(min=0, help="Target to the first token; 0: none.")] = 0.0,
    token_p95_ms: Annotated[float, typer.Option(min=0, help="Target between tokens; 0: none.")] = 0.0,
    wait: Annotated[bool, typer.Option(help="Return when every expert is loaded, too.")] = True,
    deadline_s: Annotated[float, typer.Option(min=1, help="For everything.")] = SERVE_S,
    as_json: Json = False,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Serve one more model.

    The others go on undisturbed; requests name the model that they mean. Ends with code 1 if experts have no room.
    """
    sla = SlaTarget(ttft_p95_ms, token_p95_ms) if ttft_p95_ms or token_p95_ms else None
    with connect(server, token, tls, deadline_s=deadline_s) as client:
        served = client.serve_model(
            Path(path).absolute(),
            name=name,
            precision=precision,
            sla=sla,
            budget_share=budget_share,
            slots=slots,
            numerics=numerics,
            local_layers=local_layers,
        )
        if wait:
            served = _settled(client, served, deadline_s)
    _print_served(served, as_json=as_json)
    if wait and served.state != "ready":
        raise typer.Exit(FAILED)


def _settled(client: Client, served: ModelStatus, deadline_s: float) -> ModelStatus:
    """The model once its experts are loaded, or once it is clear that some have no room."""
    end = time.monotonic() + deadline_s
    looks_without_room = 0
    while looks_without_room < ENOUGH_LOOKS:
        try:
            missing = client.wait_ready(model=served.name, deadline_s=LOOK_S).missing_bytes
        except DeadlineExceeded:  # still loading
            if time.monotonic() > end:
                raise
            missing = 0
        else:
            if not missing:
                break
        # Right after its start a model has no placement yet: only what stays without room has none.
        looks_without_room = looks_without_room + 1 if missing else 0
    return next((m for m in client.served_models() if m.name == served.name), served)


def _print_served(served: ModelStatus, *, as_json: bool) -> None:
    if as_json:
        return print_json(served)
    sys.stdout.write(f"{served.name} is {served.state}: {served.experts} experts, {served.instances} copies\n")
    if served.missing_bytes:
        lack = f"{megabytes(served.missing_bytes)} MB of experts have no room"
        sys.stdout.write(f"  {lack}: add a worker, raise --budget-share, or unserve another model\n")
    return None


def unserve(
    name: Annotated[str, typer.Argument(help="The model to take away.")],
    *,
    drain_s: Annotated[float, typer.Option(min=0, help="How long its running answers may go on.")] = DRAIN_S,
    as_json: Json = False,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Take a model away.

    New requests are refused at once, running ones may end.
    """
    with connect(server, token, tls) as client:
        cut = client.unserve_model(name, drain_s=drain_s)
    if as_json:
        return print_json({"name": name, "cut_requests": cut})
    after = f"; {counted(cut, 'answer')} cut off after {drain_s:g} s" if cut else ""
    sys.stdout.write(f"{name} is not served any more{after}\n")
    return None


def _how(model: ModelStatus) -> str:
    if model.numerics == "exact":
        return model.precision
    return f"{model.precision} {model.numerics} {model.local_layers}".rstrip()


def _row(model: ModelStatus) -> tuple[object, ...]:
    return (
        model.name, model.state, _how(model), model.experts, model.instances, megabytes(model.resident_bytes),
        megabytes(model.missing_bytes), f"{100 * model.budget_share:.0f} %", model.requests,
        targets_word(model),
    )  # fmt: skip
