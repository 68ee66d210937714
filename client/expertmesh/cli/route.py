"""`expertmesh route explain`: why tokens go to the experts they go to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli import route_screens
from expertmesh.cli.connecting import Json, Server, TlsFolder, Token, connect
from expertmesh.cli.output import console, print_json
from expertmesh.client import Client
from expertmesh.errors import InvalidRequest
from expertmesh.inspecting import Explanation


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="Why tokens go to the experts they go to.", no_args_is_help=True)
    group.command("explain")(explain)
    app.add_typer(group, name="route")


def explain(
    text: Annotated[str, typer.Argument(help="The text whose way is explained.")] = "",
    *,
    rows: Annotated[Path | None, typer.Option(help="Instead of a text: a .npy file, float32 [rows, hidden].")] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="Only this layer, with every score.")] = None,
    at: Annotated[int | None, typer.Option(min=0, help="Only the token (or row) with this number.")] = None,
    question: Annotated[bool, typer.Option("--question", help="Put the text into the chat template first.")] = False,
    model: Annotated[str, typer.Option(help="Which model; needed only if several are served.")] = "",
    as_json: Json = False,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Which experts every token goes to, and why.

    The text runs through the served model like a prompt. A margin is how far a score was from the other decision.
    """
    with connect(server, token, tls) as client:
        found = _of_text(client, text, model, question) if rows is None else _of_rows(client, rows, layer, text, model)
    found = route_screens.only(found, layer, at)
    if as_json:
        return print_json(found)
    return route_screens.show(console(), found, every_score=layer is not None)


def _of_text(client: Client, text: str, model: str, question: bool) -> Explanation:
    if not text:
        raise InvalidRequest("nothing to explain: give a text, or rows with --rows FILE --layer N")
    return client.explain(text, model=model, as_question=question)


def _of_rows(client: Client, path: Path, layer: int | None, text: str, model: str) -> Explanation:
    if text:
        raise InvalidRequest("give a text or --rows, not both")
    if layer is None:
        raise InvalidRequest("--rows needs --layer: every layer has a gate of its own")
    values = _read_rows(path)
    name = model or _only_model(client)
    decided = client.explain_rows(values, layer=layer, model=name)
    pieces = tuple(f"row {number}" for number in range(len(values)))
    return Explanation(name, (), pieces, (decided,))


def _only_model(client: Client) -> str:
    names = [served.name for served in client.models()]
    if len(names) != 1:
        raise InvalidRequest(f"name the model with --model; served: {', '.join(names) or 'none'}")
    return names[0]


def _read_rows(path: Path) -> NDArray[np.float32]:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidRequest(f"{path} is no .npy file: {error}") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype != np.float32:
        found = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else "several arrays"
        raise InvalidRequest(f"{path} holds {found}: rows are float32 [rows, hidden]")
    return values
