"""Requests that need more than one field set."""

from __future__ import annotations

from collections.abc import Sequence

from expertmesh.errors import InvalidRequest
from expertmesh.options import Message, chat
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
