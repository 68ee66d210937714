"""A conversation and what a typed line means in it. Pure: lines in, actions and new conversations out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from expertmesh.errors import InvalidRequest

HELP = """\
/reset          forget everything said so far
/system TEXT    how the model should behave, from now on; without TEXT: none
/save FILE      write the conversation as JSON; `expertmesh chat --load FILE` goes on with it
/help           these lines
/quit           end (or Ctrl-D); Ctrl-C stops an answer
"""

Role = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the model is told before every answer."""

    system: str = ""
    turns: tuple[Turn, ...] = ()

    def asked(self, text: str) -> Conversation:
        """With a question at its end."""
        return replace(self, turns=(*self.turns, Turn("user", text)))

    def answered(self, text: str) -> Conversation:
        """With an answer at its end."""
        return replace(self, turns=(*self.turns, Turn("assistant", text)))

    def messages(self) -> list[dict[str, str]]:
        """The form that `Client.chat` takes."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *({"role": turn.role, "content": turn.content} for turn in self.turns)]


@dataclass(frozen=True, slots=True)
class Ask:
    text: str


@dataclass(frozen=True, slots=True)
class Become:
    """Go on with another conversation."""

    conversation: Conversation
    says: str


@dataclass(frozen=True, slots=True)
class Save:
    path: str


@dataclass(frozen=True, slots=True)
class Say:
    """Only tell the person something."""

    text: str


@dataclass(frozen=True, slots=True)
class Quit:
    pass


Action = Ask | Become | Save | Say | Quit


def action_of(line: str, conversation: Conversation) -> Action:
    """What to do about a typed line; a line that starts with two slashes is text that starts with one."""
    text = line.strip()
    if not text:
        return Say("")
    if not text.startswith("/"):
        return Ask(text)
    if text.startswith("//"):
        return Ask(text[1:])
    command, _, rest = text.partition(" ")
    return _command(command, rest.strip(), conversation)


def _command(command: str, rest: str, conversation: Conversation) -> Action:
    if command in ("/quit", "/exit"):
        return Quit()
    if command == "/reset":
        return Become(Conversation(conversation.system), "(forgotten)")
    if command == "/system":
        says = "(noted; /reset also forgets what was said before)" if rest else "(no system text any more)"
        return Become(replace(conversation, system=rest), says)
    if command == "/save":
        return Save(rest) if rest else Say("/save needs a file name, such as /save talk.json")
    if command == "/help":
        return Say(HELP.rstrip())
    return Say(f"{command} is no command; /help lists them. Begin with // to say something that starts with /")


def to_json(conversation: Conversation) -> str:
    """The text of a saved conversation: its messages, as the SDK and OpenAI clients take them."""
    return json.dumps({"messages": conversation.messages()}, ensure_ascii=False, indent=1) + "\n"


def from_json(text: str, origin: str) -> Conversation:
    """A saved conversation; `origin` names it in errors.

    Raises:
        InvalidRequest: it is none.

    """
    try:
        messages = json.loads(text)["messages"]
        system = "".join(m["content"] for m in messages if m["role"] == "system")
        return Conversation(system, tuple(_turn(m) for m in messages if m["role"] != "system"))
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequest(f"{origin} is no saved conversation ({error!r}); /save writes one") from error


def _turn(message: Mapping[str, str]) -> Turn:
    role, content = message["role"], message["content"]
    if role not in ("user", "assistant") or not isinstance(content, str):
        raise ValueError(f"a message of {role!r}")
    return Turn("user" if role == "user" else "assistant", content)
