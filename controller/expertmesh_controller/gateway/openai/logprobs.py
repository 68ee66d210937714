"""Log probabilities in OpenAI's two forms, let out together with the text that they belong to."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from expertmesh_api.v1 import inference_pb2

__all__ = ["Entry", "Placed", "WaitingEntries", "chat_form", "completion_form", "entry_of", "own_text"]

LEAST = -9999.0
"""In place of minus infinity, which JSON cannot write."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A token's own text as bytes, its log probability (None: nothing came before it), and the likeliest tokens."""

    text_bytes: bytes
    logprob: float | None
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """An entry and where its text begins, in characters from the beginning of the answer."""

    offset: int
    entry: Entry


def entry_of(token: inference_pb2.Token | inference_pb2.ScoredToken) -> Entry:
    """What the gateway says of a token."""
    logprob = max(token.logprob, LEAST) if token.HasField("logprob") else None
    return Entry(
        token.text_bytes, logprob, tuple((top.text_bytes, max(top.logprob, LEAST)) for top in token.top_logprobs)
    )


class WaitingEntries:
    """Entries of text that is shown as soon as it is certain: nothing is held back, nothing taken back.

    `start` is the number of characters in front of the first one.
    """

    def __init__(self, start: int = 0) -> None:
        self._waiting: deque[Placed] = deque()
        self._shown = self._next = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, entry: Entry, text: str) -> list[Placed]:
        """Add the entry of a token with which `text` became certain; it is out with its text."""
        own = own_text(entry.text_bytes)
        # A token without text, or a part of a character, stands where the next text begins.
        offset = self._shown + (len(text) - len(own) if own and text.endswith(own) else 0)
        self._waiting.append(Placed(offset, entry))
        self._shown += len(text)
        return self.rest()

    def add(self, entry: Entry) -> None:
        """Add an entry whose text is shown later."""
        self._waiting.append(Placed(self._counted(entry, own_text(entry.text_bytes)), entry))

    def shown(self, characters: int) -> list[Placed]:
        """The entries whose text has begun, now that so many more characters are out."""
        self._shown += characters
        out = []
        while self._waiting and self._waiting[0].offset < self._shown:
            out.append(self._waiting.popleft())
        return out

    def end(self, text: str, *, whole: bool) -> list[Placed]:  # noqa: ARG002 - as `HeldEntries.end`
        """The last entries of an answer, with the end of its text."""
        return self.shown(len(text))

    def rest(self) -> list[Placed]:
        """Those that still wait."""
        out = [Placed(min(placed.offset, self._shown), placed.entry) for placed in self._waiting]
        self._waiting.clear()
        return out

    def _counted(self, entry: Entry, own: str | None) -> int:
        if not self._waiting:
            self._next = self._shown
        before, added = self._next, len(self._decoder.decode(entry.text_bytes))
        self._next += added
        # What was added may begin with the marks of bytes before it that never became a character.
        return before if own is None else self._next - len(own)


def completion_form(placed: Sequence[Placed]) -> dict[str, Any]:
    """The `logprobs` of a completion; the picked token is always among its alternatives."""
    return {
        "tokens": [_token_text(p.entry.text_bytes) for p in placed],
        "token_logprobs": [p.entry.logprob for p in placed],
        "top_logprobs": [_alternatives(p.entry) for p in placed],
        "text_offset": [p.offset for p in placed],
    }


def chat_form(placed: Iterable[Placed]) -> dict[str, Any]:
    """The `logprobs` of a chat completion."""
    return {"content": [_chat_entry(p.entry) for p in placed], "refusal": None}


def _alternatives(entry: Entry) -> dict[str, float] | None:
    if entry.logprob is None:
        return None
    found: dict[str, float] = {}
    for text_bytes, logprob in (*entry.top, (entry.text_bytes, entry.logprob)):
        found.setdefault(_token_text(text_bytes), logprob)
    return found


def _chat_entry(entry: Entry) -> dict[str, Any]:
    top = [_described(text_bytes, logprob) for text_bytes, logprob in entry.top]
    return {**_described(entry.text_bytes, entry.logprob), "top_logprobs": top}


def _described(text_bytes: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": _token_text(text_bytes), "bytes": list(text_bytes), "logprob": logprob}


def own_text(text_bytes: bytes) -> str | None:
    """A token's text by itself; None for a part of a character."""
    try:
        return text_bytes.decode()
    except UnicodeDecodeError:
        return None


def _token_text(text_bytes: bytes) -> str:
    """The text; of a part of a character, its bytes written out."""
    text = own_text(text_bytes)
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text_bytes) if text is None else text
