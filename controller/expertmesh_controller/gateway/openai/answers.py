"""From the gateway's events to the pieces that answers are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from expertmesh_api.v1 import inference_pb2
from expertmesh_controller.gateway.openai.held_logprobs import HeldEntries
from expertmesh_controller.gateway.openai.logprobs import Entry, Placed, WaitingEntries, entry_of

__all__ = ["AnswerPieces", "Echoed", "Piece", "Usage"]

_REASONS = {inference_pb2.FINISH_REASON_STOP: "stop", inference_pb2.FINISH_REASON_LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event adds to an answer; `finish` is set on the last one, which also knows if the answer is `lossy`."""

    text: str
    logprobs: Sequence[Placed] = ()
    finish: str | None = None
    lossy: bool = False

    @property
    def says_something(self) -> bool:
        return bool(self.text or self.logprobs or self.finish)


@dataclass(frozen=True, slots=True)
class Echoed:
    """A prompt as an answer begins with it; without log probabilities `entries` is empty. `lossy` tells of those."""

    text: str
    entries: tuple[Entry, ...] = ()
    tokens: int = 0
    lossy: bool = False

    def piece(self) -> Piece:
        waiting = WaitingEntries()
        for entry in self.entries:
            waiting.add(entry)
        return Piece(self.text, (*waiting.shown(len(self.text)), *waiting.rest()), lossy=self.lossy)


class AnswerPieces:
    """Follows one answer; `entries` are for log probabilities, None if nobody asked for them."""

    def __init__(self, entries: WaitingEntries | HeldEntries | None) -> None:
        self._entries = entries

    def take(self, event: inference_pb2.GenerateResponse) -> Piece:
        if event.WhichOneof("event") == "finished":
            return self._last(event.finished)
        token = event.token
        if self._entries is None:
            return Piece(token.text)
        return Piece(token.text, self._entries.take(entry_of(token), token.text))

    def _last(self, finished: inference_pb2.Finished) -> Piece:
        placed: list[Placed] = []
        if self._entries is not None:
            whole = finished.reason == inference_pb2.FINISH_REASON_LENGTH
            placed = self._entries.end(finished.text_tail, whole=whole)
        reason = _REASONS.get(finished.reason, "stop")
        return Piece(finished.text_tail, placed, reason, lossy=bool(finished.lossy))


@dataclass(slots=True)
class Usage:
    """Tokens of a request: each prompt counts once, whatever the number of its answers."""

    prompts: dict[int, int] = field(default_factory=dict)
    completion_tokens: int = 0

    def add(self, prompt: int, finished: inference_pb2.Finished) -> None:
        self.prompts[prompt] = finished.prompt_tokens
        self.completion_tokens += finished.completion_tokens

    def body(self) -> dict[str, int]:
        prompt_tokens = sum(self.prompts.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt_tokens + self.completion_tokens,
        }
