"""From the bytes of a request body to a checked message; every refusal names the parameter."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from expertmesh_controller.gateway.openai.failures import WrongParam
from expertmesh_controller.gateway.openai.messages import (
    IGNORED,
    MAX_CHOICES,
    NEUTRAL,
    AnswerRequest,
    ChatRequest,
    CompletionRequest,
)

__all__ = ["read_chat", "read_completion"]

_SHOWN_CHARACTERS = 64

Kind = TypeVar("Kind", bound=AnswerRequest)


def read_completion(body: bytes) -> CompletionRequest:
    """The request.

    Raises:
        WrongParam: it is no JSON object, or a parameter is missing, unknown, out of range or contradicts another.

    """
    request = _read(CompletionRequest, body)
    if request.max_tokens == 0 and not request.echo:
        raise WrongParam("max_tokens is 0: only with echo is there anything to answer then", "max_tokens")
    choices = len(request.prompt) * request.n
    if choices > MAX_CHOICES:
        raise WrongParam(f"n is {request.n} for {len(request.prompt)} prompts: at most {MAX_CHOICES} answers", "n")
    return request


def read_chat(body: bytes) -> ChatRequest:
    """The request.

    Raises:
        WrongParam: as `read_completion`.

    """
    request = _read(ChatRequest, body)
    if not request.messages:
        raise WrongParam("messages is empty: send at least one message", "messages")
    if request.top_logprobs and not request.logprobs:
        raise WrongParam("top_logprobs needs logprobs to be true", "top_logprobs")
    if None not in (request.max_tokens, request.max_completion_tokens) and (
        request.max_tokens != request.max_completion_tokens
    ):
        contradiction = f"max_tokens is {request.max_tokens} and max_completion_tokens {request.max_completion_tokens}"
        raise WrongParam(f"{contradiction}: send one of them", "max_completion_tokens")
    return request


def _read(kind: type[Kind], body: bytes) -> Kind:
    sent = _object(body)
    for name, value in tuple(sent.items()):
        if name in NEUTRAL and value is not None:
            _check_neutral(name, value, sent.get("n"))
        if value is None or name in IGNORED or name in NEUTRAL:
            del sent[name]
    try:
        request = kind.model_validate(sent)
    except ValidationError as error:
        raise _refusal(error) from None
    if request.stream_options is not None and not request.stream:
        raise WrongParam("stream_options is only allowed when stream is true", "stream_options")
    return request


def _object(body: bytes) -> dict[str, Any]:
    try:
        sent = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise WrongParam(f"the body is not JSON: {error}", None) from None
    if not isinstance(sent, dict):
        raise WrongParam("the body must be a JSON object", None)
    return sent


def _check_neutral(name: str, value: Any, n: Any) -> None:  # noqa: ANN401 - whatever was sent
    if name == "best_of" and n not in (None, 1):
        raise WrongParam(f"best_of is {_shown(value)} and n is {_shown(n)}: leave best_of out", name)
    allowed = NEUTRAL[name]
    if value in allowed and not isinstance(value, bool):  # True == 1 in Python, not in JSON
        return
    instead = f"leave it out or send {json.dumps(allowed[0])}" if allowed else "leave it out"
    raise WrongParam(f"{name} is not supported by this mesh: {instead}", name, code="unsupported_parameter")


def _refusal(error: ValidationError) -> WrongParam:
    first = error.errors(include_url=False)[0]
    param = _path(first["loc"])
    match first["type"]:
        case "missing":
            return WrongParam(f"{param} is missing", param, code="missing_required_parameter")
        case "extra_forbidden":
            return WrongParam(f"unknown parameter {param}: check its name", param, code="unknown_parameter")
        case "value_error":
            return WrongParam(f"{param} {first['ctx']['error']}", param)
        case _:
            reason = first["msg"][0].lower() + first["msg"][1:]
            return WrongParam(f"{param}: {reason} (got {_shown(first['input'])})", param)


def _path(parts: Iterable[int | str]) -> str:
    """("messages", 0, "role") as `messages[0].role`."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shown(value: Any) -> str:  # noqa: ANN401 - whatever was sent
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
