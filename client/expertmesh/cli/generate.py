"""`expertmesh generate`: an answer on standard output as it is made."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli.connecting import Json, Server, TlsFolder, Token, connect
from expertmesh.options import GenerateOptions
from expertmesh.streams import TokenStream


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("generate")(generate)


def generate(
    prompt: Annotated[str, typer.Argument(help="The text or question; - reads standard input.")],
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    model: Annotated[str, typer.Option(help="Which model; needed only if several are served.")] = "",
    max_tokens: Annotated[int, typer.Option(min=0, help="0: as many as the context allows.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0)] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    deadline_s: Annotated[float, typer.Option(min=0)] = 300.0,
    as_json: Json = False,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Ask the mesh and stream its answer to standard output."""
    text = sys.stdin.read() if prompt == "-" else prompt
    options: GenerateOptions = {
        "model": model, "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "seed": seed, "stop": stop or [], "deadline_s": deadline_s,
    }  # fmt: skip
    with connect(server, token, tls) as client:
        stream = client.generate(text, **options) if raw else client.chat(_question(text), **options)
        with stream:
            _print_json(stream) if as_json else _print_text(stream)


def _question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _print_text(stream: TokenStream) -> None:
    for text in stream.texts():
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _print_json(stream: TokenStream) -> None:
    answer = asdict(stream.complete())
    answer["tokens"] = [token["id"] for token in answer["tokens"]]
    json.dump(answer, sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")
