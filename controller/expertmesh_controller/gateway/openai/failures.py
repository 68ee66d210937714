"""Errors as OpenAI's clients read them: a status, `{"error": {message, type, param, code}}`, and when to come back."""

from __future__ import annotations

import logging
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from expertmesh_common.errors import (
    CorruptData,
    DeadlinePassed,
    Exhausted,
    InvalidInput,
    MeshError,
    NotHere,
    Precondition,
    Refused,
    Unauthenticated,
    Unavailable,
)
from expertmesh_controller.gateway.superseding import Superseded

__all__ = ["Failure", "WrongParam", "failure_of", "named_limit"]

log = logging.getLogger(__name__)

_INVALID = "invalid_request_error"
_SERVER = "server_error"
_RETRY_S = 1

# (class, status, type, code)
_KINDS: tuple[tuple[type[MeshError], int, str, str | None], ...] = (
    (InvalidInput, 400, _INVALID, None),
    (Unauthenticated, 401, _INVALID, "invalid_api_key"),
    (Refused, 403, "permission_error", "insufficient_permissions"),
    (NotHere, 404, _INVALID, "model_not_found"),
    (Superseded, 409, _INVALID, "superseded"),
    (Precondition, 409, _INVALID, "failed_precondition"),
    (Exhausted, 429, "rate_limit_error", "rate_limit_exceeded"),
    (CorruptData, 500, _SERVER, "corrupt_data"),
    (Unavailable, 503, _SERVER, "unavailable"),
    (DeadlinePassed, 504, _SERVER, "deadline_exceeded"),
)

# The gateway names the fields of its own protocol; who calls here knows OpenAI's.
_OUR_NAMES = {
    "prompt": "prompt",
    "prompt_ids": "prompt",
    "prompt_ids.ids": "prompt",
    "token_ids.ids": "prompt",
    "text": "prompt",
    "ids.ids": "prompt",
    "chat": "messages",
    "chat.messages": "messages",
    "max_tokens": "max_tokens",
    "model": "model",
}
_FIELD = re.compile(r"[a-z_]+(?:\.[a-z_]+)*")
_OTHER_DOOR = ("send `prompt` or `prompt_ids`", "use /v1/completions")


class WrongParam(InvalidInput):
    """A parameter of the request is wrong; `param` is its name as OpenAI spells it."""

    def __init__(self, message: str, param: str | None, *, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.http_status = param, code, status


@dataclass(frozen=True, slots=True)
class Failure:
    """What leaves this door in place of an answer."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, dict[str, str | None]]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def named_limit(error: InvalidInput, limit: str) -> InvalidInput:
    """The error, about `limit` where it is about `max_tokens`: OpenAI has two names for it."""
    message = str(error)
    if limit == "max_tokens" or not message.startswith("max_tokens "):
        return error
    return WrongParam(limit + message.removeprefix("max_tokens"), limit)


def failure_of(error: Exception, what: str) -> Failure:
    """Our errors with their message; any other without detail, but with an id under which the log has the rest.

    `what` names the request in the log.
    """
    if isinstance(error, WrongParam):
        return Failure(error.http_status, str(error), _INVALID, error.param, error.code)
    for kind, status, type_, code in _KINDS:
        if isinstance(error, kind):
            message, param = _in_openai_words(str(error)) if kind is InvalidInput else (str(error), None)
            param = "model" if kind is NotHere else param
            return Failure(status, message, type_, param, code, _come_back(error))
    mark = secrets.token_hex(4)
    log.error("unforeseen error in %s id=%s", what, mark, exc_info=error)
    return Failure(500, f"internal error {mark}; the server's log has the details", _SERVER, None, "internal_error")


def _in_openai_words(message: str) -> tuple[str, str | None]:
    """(message, parameter): the gateway's messages begin with the field that is wrong."""
    found = _FIELD.match(message)
    if found is None:
        return message, None
    name = found[0]
    param = name.removeprefix("sampling.") if name.startswith("sampling.") else _OUR_NAMES.get(name)
    if param is None:
        return message, None
    return (param + message[found.end() :]).replace(*_OTHER_DOOR), param


def _come_back(error: MeshError) -> dict[str, str]:
    """Headers that say when another try makes sense; OpenAI's clients read the one in milliseconds first."""
    if isinstance(error, Exhausted):
        seconds = max(1, math.ceil(error.retry_after_ms / 1000))
        return {"Retry-After": str(seconds), "Retry-After-Ms": str(error.retry_after_ms)}
    return {"Retry-After": str(_RETRY_S)} if isinstance(error, Unavailable) else {}
