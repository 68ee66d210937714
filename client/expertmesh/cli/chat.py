"""`expertmesh chat`: a conversation at the terminal, or with a pipe."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TextIO

import typer

from expertmesh.channel import DEFAULT_ADDRESS
from expertmesh.cli import failures
from expertmesh.cli.connecting import Server, TlsFolder, Token, connect
from expertmesh.cli.conversation import Ask, Become, Conversation, Quit, Save, Say, action_of, from_json, to_json
from expertmesh.client import Client
from expertmesh.errors import ExpertmeshError
from expertmesh.options import GenerateOptions
from expertmesh.streams import TokenStream

PROMPT = "> "
GREETING = "Type a message; /help lists commands, Ctrl-C stops an answer, Ctrl-D ends.\n"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("chat")(chat)


def chat(
    *,
    system: Annotated[str, typer.Option(help="How the model should behave.")] = "",
    load: Annotated[Path | None, typer.Option(help="Go on with a conversation that /save wrote.")] = None,
    model: Annotated[str, typer.Option(help="Which model; needed only if several are served.")] = "",
    max_tokens: Annotated[int, typer.Option(min=0, help="Per answer; 0: as many as the context allows.")] = 0,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    deadline_s: Annotated[float, typer.Option(min=0, help="Per answer.")] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per answer and line.")] = False,
    server: Server = DEFAULT_ADDRESS,
    token: Token = None,
    tls: TlsFolder = None,
) -> None:
    """Talk with a model that remembers what was said.

    Lines from a pipe are messages too, with one answer each. /help lists the commands.
    """
    options: GenerateOptions = {
        "model": model, "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed,
        "deadline_s": deadline_s,
    }  # fmt: skip
    conversation = Conversation() if load is None else from_json(load.read_text(encoding="utf-8"), str(load))
    if system:
        conversation = Conversation(system, conversation.turns)
    with connect(server, token, tls) as client:
        interactive = sys.stdin.isatty()
        lines = typed_lines() if interactive else sys.stdin
        Chat(client, options, conversation, as_json=as_json, interactive=interactive).run(lines)


def typed_lines() -> Iterator[str]:
    """Lines from a person: edited and remembered; Ctrl-C drops the line, Ctrl-D ends."""
    with contextlib.suppress(ImportError):  # not everywhere; then lines cannot be edited, but typed
        import readline  # noqa: F401, PLC0415 - importing it is what makes `input` edit
    sys.stderr.write(GREETING)
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            sys.stderr.write("\n")
            return
        except KeyboardInterrupt:
            sys.stderr.write("\n")


class Chat:
    """The acting half: asks, prints, saves. A failed answer ends a pipe with its error, and a person may go on."""

    def __init__(
        self, client: Client, options: GenerateOptions, conversation: Conversation, *, as_json: bool, interactive: bool
    ) -> None:
        self._client, self._options, self.conversation = client, options, conversation
        self._as_json, self._interactive = as_json, interactive

    def run(self, lines: Iterator[str] | TextIO) -> None:
        """Until /quit or the end of the lines."""
        for line in lines:
            try:
                if not self._act(line):
                    return
            except (ExpertmeshError, OSError) as error:
                if not self._interactive:
                    raise
                failures.report(error)

    def _act(self, line: str) -> bool:
        action = action_of(line, self.conversation)
        match action:
            case Quit():
                return False
            case Ask(text):
                self._answer(text)
            case Become(conversation, says):
                self.conversation = conversation
                self._tell(says)
            case Save(path):
                Path(path).write_text(to_json(self.conversation), encoding="utf-8")
                self._tell(f"(saved {path})")
            case Say(text):
                self._tell(text)
        return True

    def _answer(self, text: str) -> None:
        asked = self.conversation.asked(text)
        stream = self._client.chat(asked.messages(), **self._options)
        with stream:
            answer = self._whole(stream) if self._as_json else self._shown(stream)
        # Only now: a question without an answer is not remembered.
        self.conversation = asked.answered(answer)

    def _shown(self, stream: TokenStream) -> str:
        """Print as it comes; Ctrl-C ends the answer, what was said is kept."""
        pieces: list[str] = []
        try:
            for piece in stream.texts():
                pieces.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            stream.close()
            self._tell("\n(stopped)")
        sys.stdout.write("\n")
        sys.stdout.flush()
        return "".join(pieces)

    def _whole(self, stream: TokenStream) -> str:
        answer = stream.complete()
        line = {
            "text": answer.text, "finish_reason": answer.finish_reason, "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens, "ttft_ms": answer.ttft_ms, "total_ms": answer.total_ms,
        }  # fmt: skip
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return answer.text

    def _tell(self, text: str) -> None:
        """A remark to a person; answers alone go to standard output."""
        if text:
            sys.stderr.write(f"{text}\n")
