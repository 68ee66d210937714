"""`expertmesh generate`: an answer on standard output as it is made."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli.connecting import Json, Server, TlsFolder, Token, connect
from expertmesh.errors import InvalidRequest
from expertmesh.options import GenerateOptions
from expertmesh.streams import TokenStream
from expertmesh.types import Completion


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("generate")(generate)


def generate(
    prompt: Annotated[str, typer.Argument(help="The text or question; - reads standard input, as a pipe does.")] = "-",
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    model: Annotated[str, typer.Option(help="Which model; needed only if several are served.")] = "",
    max_tokens: Annotated[int, typer.Option(min=0, help="0: as many as the context allows.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Only the likeliest so many tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Only the likeliest tokens of this mass; 1: all.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same answer.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    deadline_s: Annotated[float, typer.Option(min=0, help="Seconds for everything.")] = 300.0,
    stats: Annotated[bool, typer.Option("--stats", help="Tokens and times afterwards, on standard error.")] = False,
    as_json: Json = False,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Ask a model; its answer goes to standard output as it is made."""
    text = _piped_text() if prompt == "-" else prompt
    options: GenerateOptions = {
        "model": model, "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "seed": seed, "stop": stop or [], "deadline_s": deadline_s,
    }  # fmt: skip
    with connect(server, token, tls) as client:
        stream = client.generate(text, **options) if raw else client.chat(_question(text), **options)
        with stream:
            _print_json(stream) if as_json else _print_text(stream)
            if stats:
                sys.stderr.write(summary(stream.result))


def summary(answer: Completion) -> str:
    """One line about an answer."""
    after_first_s = max(answer.total_ms - answer.ttft_ms, 0.0) / 1000
    rate = f", then {(answer.completion_tokens - 1) / after_first_s:.1f} tokens/s" if after_first_s else ""
    return (
        f"{answer.prompt_tokens} + {answer.completion_tokens} tokens, first after {answer.ttft_ms:.0f} ms{rate}, "
        f"{100 * answer.active_share:.0f} % of neurons evaluated, ended by {answer.finish_reason}\n"
    )


def _piped_text() -> str:
    """Standard input; at a terminal nobody would know that it is waited for."""
    if sys.stdin.isatty():
        sys.stderr.write("Type the prompt; Ctrl-D ends it.\n")
    text = sys.stdin.read()
    if not text.strip():
        raise InvalidRequest("the prompt is empty: give a text, or pipe one in")
    return text


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
