"""Around every call of a server: the token before it, the caller's name during it, the status after it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from expertmesh_common.access.doorkeeper import Doorkeeper
from expertmesh_common.access.identity import Identity, enter_call, peer_host
from expertmesh_common.access.scopes import Scope, needed_scope, short_name
from expertmesh_common.errors import Exhausted, MeshError, Unauthenticated
from expertmesh_common.garbled import lenient, readable, readable_stream

log = logging.getLogger(__name__)

PUBLIC_PREFIX = "/grpc.health.v1.Health/"
RETRY_AFTER_KEY = "retry-after-ms"
REVOKED = "the token was revoked or has expired while this call was running"

if TYPE_CHECKING:  # the classes take type arguments in their stubs only
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext


@dataclass(frozen=True, slots=True)
class AuditedCall:
    """A call that changes something: who made it, and how it ended."""

    caller: Identity
    method: str
    arguments_digest: str
    result: str


Audit = Callable[[AuditedCall], Awaitable[None]]


class Guard(grpc.aio.ServerInterceptor):
    """Asks the doorkeeper before, and maps errors after, every call but health. `audit` gets those of scope ADMIN."""

    def __init__(self, doorkeeper: Doorkeeper, audit: Audit | None = None) -> None:
        self._doorkeeper = doorkeeper
        self._audit = audit

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(PUBLIC_PREFIX):
            return handler
        token = bearer_token(handler_call_details.invocation_metadata)
        return _guarded(handler, _Entry(self._doorkeeper, handler_call_details.method, token, self._audit))


def bearer_token(metadata: Any) -> str | None:  # noqa: ANN401
    """The token of `authorization: Bearer ...`, if there is one."""
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str) and value.startswith("Bearer "):
            return value.removeprefix("Bearer ")
    return None


class _Entry:
    """One call at the door."""

    def __init__(self, doorkeeper: Doorkeeper, path: str, token: str | None, audit: Audit | None) -> None:
        self.path = path
        self.caller = Identity()
        self.revoked = False
        self.handing_over = False
        """An answer is with gRPC. Cancelled there, a call would end without a status, and its caller wait for ever."""
        self._doorkeeper, self._token = doorkeeper, token
        self._needed = needed_scope(path)
        self._audit = audit if self._needed is Scope.ADMIN else None
        self._task: asyncio.Task[Any] | None = None

    def admit(self, context: Context) -> contextlib.AbstractContextManager[None]:
        """What to be in while the call runs. Raises what `Doorkeeper.check` does."""
        self._task = asyncio.current_task()
        peer = peer_host(context.peer())
        try:
            self.caller = self._doorkeeper.check(self._token, None, peer)
            self._doorkeeper.check(self._token, self._needed)
        except MeshError as error:
            log.info("refused %s from %s: %s", short_name(self.path), peer, error.status.name)
            raise
        enter_call(self.caller)
        return self._doorkeeper.running(self.caller, self.end)

    def end(self) -> None:
        """The token was taken back."""
        self.revoked = True
        if self._task is not None and not self.handing_over:
            self._task.cancel()

    def ended_by_revocation(self) -> Unauthenticated | None:
        """The error that takes the place of a cancellation of ours; None if somebody else cancelled."""
        if not self.revoked or self._task is None:
            return None
        self._task.uncancel()
        return Unauthenticated(REVOKED)

    async def tell(self, request: Any, result: grpc.StatusCode) -> None:  # noqa: ANN401 - any message
        """Strangers leave no entry: they could fill the audit. The log has them."""
        if self._audit is not None and (self.caller.token_id or not self._doorkeeper.demands):
            digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
            await self._audit(AuditedCall(self.caller, short_name(self.path), digest, result.name))


def _guarded(handler: Any, entry: _Entry) -> Any:  # noqa: ANN401
    """The same handler with checks around it, for each of the four kinds."""
    wrap = _stream_out if handler.response_streaming else _single_out
    behaviour = {
        (False, False): handler.unary_unary,
        (False, True): handler.unary_stream,
        (True, False): handler.stream_unary,
        (True, True): handler.stream_stream,
    }[handler.request_streaming, handler.response_streaming]
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    read = handler.request_deserializer
    if read is not None:  # None are the raw frames of the expert channel, which checks them itself
        behaviour = _reading(behaviour, readable_stream if handler.request_streaming else readable)
    return make(wrap(behaviour, entry), lenient(read), handler.response_serializer)


def _reading(behaviour: Any, read: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    """The same, for requests that may have come garbled."""
    return lambda request, context: behaviour(read(request), context)


def _single_out(behaviour: Any, entry: _Entry) -> Callable[[Any, Context], Awaitable[Any]]:  # noqa: ANN401
    async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
        try:
            with entry.admit(context):
                answer = await behaviour(request, context)
        except asyncio.CancelledError:
            if (revoked := entry.ended_by_revocation()) is None:
                raise
            await abort(context, revoked, entry.path)
        except Exception as error:  # noqa: BLE001 - the edge of the process: every error leaves as a status
            await entry.tell(request, status_of(error))
            await abort(context, error, entry.path)
        else:
            await entry.tell(request, grpc.StatusCode.OK)
            return answer

    return call


def _stream_out(behaviour: Any, entry: _Entry) -> Callable[[Any, Context], AsyncIterator[Any]]:  # noqa: ANN401
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
        try:
            with entry.admit(context):
                async for item in behaviour(request, context):
                    entry.handing_over = True
                    yield item
                    entry.handing_over = False
                    if entry.revoked:
                        raise Unauthenticated(REVOKED)
        except asyncio.CancelledError:
            if (revoked := entry.ended_by_revocation()) is None:
                raise
            await abort(context, revoked, entry.path)
        except Exception as error:  # noqa: BLE001 - the edge of the process: every error leaves as a status
            await abort(context, error, entry.path)

    return call


def status_of(error: Exception) -> grpc.StatusCode:
    return error.status if isinstance(error, MeshError) else grpc.StatusCode.INTERNAL


async def abort(context: Context, error: Exception, method: str) -> None:
    """End the call with a status: ours with its message, anything else without detail but with a logged id."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, MeshError):
        if isinstance(error, Exhausted):
            context.set_trailing_metadata(((RETRY_AFTER_KEY, str(error.retry_after_ms)),))
        await context.abort(error.status, str(error))
    mark = secrets.token_hex(4)
    log.error("unforeseen error in %s id=%s", method, mark, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, f"internal error {mark}; the server's log has the details")
