"""A gRPC server as every service of the mesh runs it: token check, error mapping, health, reflection, drain."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from expertmesh_common.errors import Exhausted, InvalidInput, MeshError, Unauthenticated
from expertmesh_common.security import MESSAGE_LIMITS, Security

log = logging.getLogger(__name__)

PUBLIC_PREFIX = "/grpc.health.v1.Health/"
RETRY_AFTER_KEY = "retry-after-ms"

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *MESSAGE_LIMITS,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.so_reuseport", 0),  # a port that is taken must be an error, not a lottery
)

if TYPE_CHECKING:  # the classes take type arguments in their stubs only
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext


class Serving:
    """A server that is configured once, started, and drained.

    Add servicers to `server` before `start`. Every call but health needs the token of `security`, if it has one.
    """

    def __init__(self, security: Security) -> None:
        self._security = security
        self._health = health.aio.HealthServicer()
        self.server = grpc.aio.server(interceptors=(_Guard(security),), options=SERVER_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)

    async def start(self, address: str, services: tuple[str, ...] = ()) -> int:
        """Listen on `host:port` (port 0: any free one) or `unix:path`; `services` go to reflection. Returns the port.

        Raises:
            InvalidInput: nothing can listen there.

        """
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.server)
        credentials = None if address.startswith("unix:") else self._security.server_credentials()
        try:
            port = (
                self.server.add_insecure_port(address)
                if credentials is None
                else self.server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise InvalidInput(
                f"cannot listen on {address}: is another process using it? Pick another with --listen"
            ) from error
        await self.server.start()
        await self.set_serving("", True)
        return port

    async def set_serving(self, service: str, serving: bool) -> None:
        """What the health service answers for `service` ("" is the whole process)."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(service, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give running ones `grace_s` seconds, then end them."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)


class _Guard(grpc.aio.ServerInterceptor):
    """Checks the token before, and maps errors after, every call."""

    def __init__(self, security: Security) -> None:
        self._security = security

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(PUBLIC_PREFIX):
            return handler
        allowed = self._security.accepts(bearer_token(handler_call_details.invocation_metadata))
        return _guarded(handler, handler_call_details.method, allowed)


def bearer_token(metadata: Any) -> str | None:  # noqa: ANN401
    """The token of `authorization: Bearer ...`, if there is one."""
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str) and value.startswith("Bearer "):
            return value.removeprefix("Bearer ")
    return None


def _guarded(handler: Any, method: str, allowed: bool) -> Any:  # noqa: ANN401
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
    return make(wrap(behaviour, method, allowed), handler.request_deserializer, handler.response_serializer)


def _single_out(behaviour: Any, method: str, allowed: bool) -> Callable[[Any, Context], Awaitable[Any]]:  # noqa: ANN401
    async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
        try:
            _check(allowed)
            return await behaviour(request, context)
        except Exception as error:  # noqa: BLE001 - the edge of the process: every error leaves as a status
            await abort(context, error, method)

    return call


def _stream_out(behaviour: Any, method: str, allowed: bool) -> Callable[[Any, Context], AsyncIterator[Any]]:  # noqa: ANN401
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
        try:
            _check(allowed)
            async for item in behaviour(request, context):
                yield item
        except Exception as error:  # noqa: BLE001 - the edge of the process: every error leaves as a status
            await abort(context, error, method)

    return call


def _check(allowed: bool) -> None:
    if not allowed:
        raise Unauthenticated(
            "the token is missing or wrong: pass the one that the controller was started with "
            "(--token or EXPERTMESH_TOKEN)"
        )


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
