"""`Inference.Score`: how likely a given text is, from a checked request to the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expertmesh_api.v1 import inference_pb2
from expertmesh_common.errors import InvalidInput
from expertmesh_common.unknown_fields import refuse_unknown_fields
from expertmesh_controller.gateway.batching.jobs import Facts, Failed, Scored, Ticket
from expertmesh_controller.gateway.requests import bounded, known_ids
from expertmesh_controller.gateway.sampling.choosing import Choice
from expertmesh_controller.gateway.sampling.options import MAX_TOP_LOGPROBS
from expertmesh_controller.gateway.text.codec import TextCodec

__all__ = ["ScoreText", "parse_score", "read_choices", "score_response"]


@dataclass(frozen=True, slots=True)
class ScoreText:
    """What is scored, and what stands before it."""

    before_ids: tuple[int, ...]
    ids: tuple[int, ...]
    top_logprobs: int

    @property
    def first(self) -> int:
        """The first place of the whole text that has something before it and is asked about."""
        return max(1, len(self.before_ids))

    @property
    def whole(self) -> tuple[int, ...]:
        return self.before_ids + self.ids


def parse_score(
    message: inference_pb2.ScoreRequest, codec: TextCodec, vocabulary: int, context_tokens: int
) -> ScoreText:
    """A text that the engine can score.

    Raises:
        InvalidInput: a field is missing, out of range or too long; the message names it.

    """
    refuse_unknown_fields(message)
    before_ids = _before(message, codec, vocabulary, context_tokens)
    field, ids = _input(message, codec, vocabulary, context_tokens, follows=bool(before_ids))
    if not ids:
        raise InvalidInput(f"{field} has no tokens: send at least one")
    count = len(before_ids) + len(ids)
    if count > context_tokens:
        raise InvalidInput(
            f"{field} and what stands before it have {count} tokens: this gateway's context is {context_tokens}"
        )
    most = min(MAX_TOP_LOGPROBS, vocabulary)
    if message.top_logprobs > most:
        raise InvalidInput(f"top_logprobs is {message.top_logprobs}: allowed are 0 to {most}")
    return ScoreText(tuple(before_ids), tuple(ids), message.top_logprobs)


async def read_choices(ticket: Ticket) -> list[Choice]:
    """Everything that the engine says about a text; raises what it failed with."""
    choices: list[Choice] = []
    while isinstance(event := await ticket.events.get(), Scored):
        choices += event.choices
    if isinstance(event, Failed):
        raise event.error
    return choices


def score_response(
    text: ScoreText, choices: Sequence[Choice], codec: TextCodec, facts: Facts, *, now: float, by: tuple[str, str]
) -> inference_pb2.ScoreResponse:
    """The answer; `now` in monotonic seconds, `by` (precision, numerics).

    A token with nothing before it has no log probability.
    """
    response = inference_pb2.ScoreResponse(
        total_logprob=sum(choice.logprob or 0.0 for choice in choices),
        prompt_tokens=len(text.before_ids),
        precision=by[0],
        numerics=by[1],
        active_share=facts.active_share,
        queue_ms=0.0 if facts.started is None else 1000 * (facts.started - facts.admitted),
        total_ms=1000 * (now - facts.admitted),
    )
    known = [None] * (len(text.ids) - len(choices)) + list(choices)
    for token_id, piece, choice in zip(text.ids, codec.pieces(text.ids), known, strict=True):
        token = response.tokens.add(id=token_id, piece=piece, text_bytes=codec.text_bytes(token_id))
        if choice is not None:
            token.logprob = choice.logprob or 0.0
            for other, logprob in choice.top_logprobs:
                token.top_logprobs.add(id=other, logprob=logprob, text_bytes=codec.text_bytes(other))
    return response


def _before(
    message: inference_pb2.ScoreRequest, codec: TextCodec, vocabulary: int, context_tokens: int
) -> Sequence[int]:
    match message.WhichOneof("before"):
        case "prompt":
            return codec.encode(bounded("prompt", message.prompt, context_tokens))
        case "prompt_ids":
            return known_ids("prompt_ids.ids", message.prompt_ids.ids, vocabulary)
        case _:
            return ()


def _input(
    message: inference_pb2.ScoreRequest, codec: TextCodec, vocabulary: int, context_tokens: int, *, follows: bool
) -> tuple[str, Sequence[int]]:
    """(name of the field, token ids); what follows a prompt gets no tokens of a text's beginning."""
    match message.WhichOneof("input"):
        case "text":
            text = bounded("text", message.text, context_tokens)
            return "text", codec.encode_more(text) if follows else codec.encode(text)
        case "ids":
            return "ids.ids", known_ids("ids.ids", message.ids.ids, vocabulary)
        case _:
            raise InvalidInput("input is missing: send one of `text` and `ids`")
