"""Requests that need more than one field set."""

from __future__ import annotations

from collections.abc import Sequence

from expertmesh.errors import InvalidRequest
from expertmesh.options import Message, chat, random_request_id
from expertmesh_api.v1 import inference_pb2 as pb


def tokenize_request(text: str | None, messages: Sequence[Message] | None, model: str) -> pb.TokenizeRequest:
    """Exactly one of text and messages.

    Raises:
        InvalidRequest: both or neither are given.

    """
    if (text is None) == (messages is None):
        raise InvalidRequest("give exactly one of text and messages")
    if messages is not None:
        return pb.TokenizeRequest(model=model, chat=chat(messages))
    return pb.TokenizeRequest(model=model, text=text)


def score_request(
    text: str | None,
    ids: Sequence[int] | None,
    prompt: str | None,
    prompt_ids: Sequence[int] | None,
    *,
    model: str,
    top_logprobs: int,
    request_id: str,
) -> pb.ScoreRequest:
    """Exactly one of text and ids, and at most one of prompt and prompt_ids; no `request_id` is a random one.

    Raises:
        InvalidRequest: there are more or fewer, or a value does not fit its field.

    """
    if (text is None) == (ids is None):
        raise InvalidRequest("give exactly one of text and ids")
    if prompt is not None and prompt_ids is not None:
        raise InvalidRequest("give at most one of prompt and prompt_ids")
    try:
        return pb.ScoreRequest(
            model=model,
            text=text,
            ids=None if ids is None else pb.TokenIds(ids=ids),
            prompt=prompt,
            prompt_ids=None if prompt_ids is None else pb.TokenIds(ids=prompt_ids),
            top_logprobs=top_logprobs,
            request_id=request_id or random_request_id(),
        )
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"an argument of score does not fit its field: {error}") from error
