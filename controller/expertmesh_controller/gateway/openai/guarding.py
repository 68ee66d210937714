"""Around every request: its id, who sends it, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import json
import re
import uuid

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from expertmesh_common.access.identity import current_caller, enter_call
from expertmesh_common.access.scopes import Scope
from expertmesh_common.errors import Unauthenticated
from expertmesh_common.observability.request_context import enter_trace
from expertmesh_common.security import Security
from expertmesh_controller.gateway.answering import Caller
from expertmesh_controller.gateway.openai.failures import Failure, WrongParam, failure_of

__all__ = ["REQUEST_ID", "STREAM", "admitting", "caller_of", "errors", "name_request", "request_id_of"]

REQUEST_ID = "X-Request-Id"
STREAM: web.RequestKey[web.StreamResponse] = web.RequestKey("stream", web.StreamResponse)
"""Set on a request once its answer has begun to stream: errors can only be events then."""

_ID: web.RequestKey[str] = web.RequestKey("id", str)
_KNOWN = "there are /v1/models, /v1/completions and /v1/chat/completions (a base URL ends in /v1)"
_GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")


def request_id_of(request: web.Request) -> str:
    """The client's own id if it sent a usable one, else a new one; the same for the whole request."""
    known = request.get(_ID)
    if known is None:
        sent = request.headers.get(REQUEST_ID) or request.headers.get("X-Client-Request-Id") or ""
        known = request[_ID] = sent if _GOOD_ID.fullmatch(sent) else f"req-{uuid.uuid4().hex}"
    return known


async def name_request(request: web.Request, response: web.StreamResponse) -> None:
    """Put the id on every response, errors included."""
    response.headers[REQUEST_ID] = request_id_of(request)


def caller_of(request: web.Request) -> Caller:
    """Who asks; from here on the request belongs to the trace that it brought along."""
    enter_trace(request.headers.items())
    return Caller(current_caller().name, request_id_of(request))


def admitting(security: Security) -> Middleware:
    """Ask the doorkeeper for each request; a token that is taken back ends what runs with it."""

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        identity = security.check(_bearer(request), Scope.INFER, request.remote or "local")
        enter_call(identity)
        task, revoked = asyncio.current_task(), False

        def end() -> None:
            nonlocal revoked
            revoked = task is not None and task.cancel()

        with security.doorkeeper.running(identity, end):
            try:
                return await handler(request)
            except asyncio.CancelledError:
                if not revoked or task is None:
                    raise
                task.uncancel()
                raise Unauthenticated("the token was revoked or has expired while this request was running") from None

    return admit


def _bearer(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.isascii() and token.strip() else None


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as a body that OpenAI's clients understand; in the middle of a stream, as its last event."""
    try:
        return await handler(request)
    except ConnectionError:  # the client is gone; the server ends the connection by itself
        raise
    except Exception as error:  # noqa: BLE001 - the edge of the process: every error leaves as a status
        failure = _http_failure(request, error) if isinstance(error, web.HTTPException) else None
        failure = failure or failure_of(error, f"{request.method} {request.path}")
    if STREAM not in request:
        return web.json_response(failure.body(), status=failure.status, headers=failure.headers)
    stream = request[STREAM]
    if request.transport is not None and not request.transport.is_closing():
        await stream.write(f"data: {json.dumps(failure.body())}\n\n".encode())
    return stream


def _http_failure(request: web.Request, error: web.HTTPException) -> Failure:
    """What the HTTP server itself refuses."""
    asked = f"{request.method} {request.path[:256]}"
    match error:
        case web.HTTPNotFound():
            wrong = WrongParam(f"unknown URL {asked}: {_KNOWN}", None, code="unknown_url", status=404)
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            wrong = WrongParam(f"{asked} is not possible: use {allowed}", None, code="method_not_allowed", status=405)
        case web.HTTPRequestEntityTooLarge():
            wrong = WrongParam(f"the body is too large: {error.text}", None, code="body_too_large", status=413)
        case _:
            wrong = WrongParam(f"{asked}: {error.reason}", None, status=error.status)
    return failure_of(wrong, asked)
