"""The two shapes of an answer: a completion's `text`, and a chat's `message`, whole or in chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from expertmesh_controller.gateway.openai.answers import Piece, Usage
from expertmesh_controller.gateway.openai.logprobs import Placed, chat_form, completion_form

__all__ = ["CHAT", "COMPLETION", "DONE", "Chunks", "Head", "Shape", "Whole", "whole_body"]

DONE = b"data: [DONE]\n\n"


class Shape(Protocol):
    """How one kind of request is answered."""

    prefix: str
    """Of the answer's id."""
    whole_object: str
    chunk_object: str
    opening: str | None
    """What the first chunk of an answer carries."""
    silence: str
    """What the last chunk of an answer carries when there is no more text."""

    def said(self, text: str) -> str:
        """The part of a chunk that carries text, as JSON."""
        ...

    def logprobs(self, placed: Sequence[Placed]) -> dict[str, Any]: ...

    def choice(self, text: str) -> dict[str, Any]:
        """The part of a whole answer that carries text."""
        ...


class _Completion:
    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"
    opening: str | None = None
    silence = '"text":""'

    def said(self, text: str) -> str:
        return f'"text":{json.dumps(text)}'

    def logprobs(self, placed: Sequence[Placed]) -> dict[str, Any]:
        return completion_form(placed)

    def choice(self, text: str) -> dict[str, Any]:
        return {"text": text}


class _Chat:
    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"
    opening: str | None = '"delta":{"role":"assistant","content":"","refusal":null}'
    silence = '"delta":{}'

    def said(self, text: str) -> str:
        return f'"delta":{{"content":{json.dumps(text)}}}'

    def logprobs(self, placed: Sequence[Placed]) -> dict[str, Any]:
        return chat_form(placed)

    def choice(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}


COMPLETION: Shape = _Completion()
CHAT: Shape = _Chat()


@dataclass(frozen=True, slots=True)
class Head:
    """What every part of an answer says: `created` in seconds since 1970, `fingerprint` as `Answering` tells it."""

    id: str
    created: int
    model: str
    fingerprint: str

    def of_lossy(self) -> Head:
        """The same for an answer that something lossy touched."""
        return replace(self, fingerprint=f"{self.fingerprint}_lossy")

    def fields(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class Chunks:
    """Server-sent events of one answer: what stays the same is written once, the text of a token is all that is not."""

    def __init__(self, shape: Shape, head: Head, *, usage: bool) -> None:
        self.with_usage = usage
        self._shape, self._opened = shape, set[int]()
        self._fields, self._lossy_fields = (
            f"data: {json.dumps(each.fields(shape.chunk_object))[:-1]}" for each in (head, head.of_lossy())
        )
        self._back = '}],"usage":null}\n\n' if usage else "}]}\n\n"

    def of(self, index: int, piece: Piece) -> bytes:
        """The events for a piece of answer `index`; may be empty."""
        shape, out = self._shape, ""
        if piece.lossy:
            self._fields = self._lossy_fields
        if shape.opening is not None and index not in self._opened:
            self._opened.add(index)
            out = self._event(index, shape.opening)
        if piece.text or piece.logprobs:
            out += self._event(index, shape.said(piece.text), piece.logprobs)
        if piece.finish is not None:
            out += self._event(index, shape.silence, (), f'"{piece.finish}"')
        return out.encode()

    def usage(self, usage: Usage) -> bytes:
        return f'{self._fields}, "choices":[],"usage":{json.dumps(usage.body())}}}\n\n'.encode()

    def _event(self, index: int, said: str, placed: Sequence[Placed] = (), finish: str = "null") -> str:
        logprobs = json.dumps(self._shape.logprobs(placed)) if placed else "null"
        front = f'{self._fields}, "choices":[{{"index":'
        return f'{front}{index},{said},"logprobs":{logprobs},"finish_reason":{finish}{self._back}'


@dataclass(slots=True)
class Whole:
    """One answer as it is collected."""

    texts: list[str] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    finish: str = "stop"
    lossy: bool = False

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.placed += piece.logprobs
        self.finish = piece.finish or self.finish
        self.lossy = self.lossy or piece.lossy


def whole_body(
    shape: Shape, head: Head, answers: Sequence[Whole], usage: Usage, *, with_logprobs: bool
) -> dict[str, Any]:
    """The body of a request that is answered at once."""
    choices = [
        {
            "index": index,
            **shape.choice("".join(answer.texts)),
            "logprobs": shape.logprobs(answer.placed) if with_logprobs else None,
            "finish_reason": answer.finish,
        }
        for index, answer in enumerate(answers)
    ]
    if any(answer.lossy for answer in answers):
        head = head.of_lossy()
    return {**head.fields(shape.whole_object), "choices": choices, "usage": usage.body()}
