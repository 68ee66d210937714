"""Who may talk to whom: mutual TLS between all parts, a bearer token on every call; optional and independent."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from expertmesh_common.access.doorkeeper import Doorkeeper
from expertmesh_common.access.identity import Identity
from expertmesh_common.access.scopes import Scope
from expertmesh_common.errors import InvalidInput, MeshError
from expertmesh_common.tls import MESH_NAME, RenewingContext, TlsFiles, renewing_server_credentials

__all__ = ["KEEPALIVE", "MESH_NAME", "MESSAGE_LIMITS", "TLS_OPTIONS", "Security", "TlsFiles", "dial"]

MAX_MESSAGE_BYTES = 64 * 2**20
TLS_OPTIONS: tuple[tuple[str, str], ...] = (("grpc.ssl_target_name_override", MESH_NAME),)

# A cut link is noticed within about 2 s: one ping a second, given up after another.
KEEPALIVE: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
MESSAGE_LIMITS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)
# A worker that restarts on the same address must be found again at once, not after gRPC's default minute of backoff.
RECONNECT: tuple[tuple[str, int], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 3000),  # also the time limit of one attempt, and a machine may be far
    ("grpc.max_reconnect_backoff_ms", 2000),
)


@dataclass(frozen=True, slots=True)
class Security:
    """What a process presents and demands. `Security()` is plain text without a token.

    `token` is what it presents to its controller, `passing` what it presents instead where it is given. Its own servers
    ask `doorkeeper`, which accepts `token` unless another one is given.
    """

    tls: TlsFiles | None = None
    token: str | None = field(default=None, repr=False)
    passing: Callable[[], str | None] | None = field(default=None, repr=False)
    doorkeeper: Doorkeeper = field(default=None, repr=False, compare=False)  # type: ignore[assignment] # set below

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token):
            raise InvalidInput(
                "a token is one or more printable ASCII characters; make one with `openssl rand -hex 16`"
            )
        if self.doorkeeper is None:
            object.__setattr__(self, "doorkeeper", Doorkeeper(self.token))

    def check(self, presented: str | None, needed: Scope, peer: str = "") -> Identity:
        """The caller behind a token; see `Doorkeeper.check` for the errors. For doors that are no gRPC server."""
        return self.doorkeeper.check(presented, needed, peer)

    def accepts(self, presented: str | None, needed: Scope = Scope.INFER) -> bool:
        """Whether a caller's token is right for what needs the scope `needed`."""
        try:
            self.doorkeeper.check(presented, needed)
        except MeshError:
            return False
        return True

    def towards_parts(self, passing: Callable[[], str | None]) -> Security:
        """For calls to other parts of the mesh: they get a pass, never the token of this process."""
        return replace(self, token=None, passing=passing)

    @property
    def presented(self) -> str | None:
        """What a call carries now."""
        return self.token if self.passing is None else self.passing()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call must carry to be accepted; `dial` adds it by itself."""
        presented = self.presented
        return () if presented is None else (("authorization", f"Bearer {presented}"),)

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """Credentials that demand a client certificate, read again when the files change; None for plain text."""
        return None if self.tls is None else renewing_server_credentials(self.tls)

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        if self.tls is None:
            return None
        return grpc.ssl_channel_credentials(
            self.tls.ca.read_bytes(), self.tls.key.read_bytes(), self.tls.certificate.read_bytes()
        )

    def ssl_server_context(self) -> ssl.SSLContext | None:
        """The same demands for the stream transport over TCP."""
        return None if self.tls is None else RenewingContext(self.tls, ssl.PROTOCOL_TLS_SERVER)

    def ssl_client_context(self) -> ssl.SSLContext | None:
        return None if self.tls is None else RenewingContext(self.tls, ssl.PROTOCOL_TLS_CLIENT)


def dial(address: str, security: Security, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
    """A channel to `address` that presents this process's certificate and token on every call.

    The token is added by interceptors, which cost a queue per message on bidirectional streams: a hot stream is
    dialled with a `Security` without token and passes `metadata=security.metadata()` itself.
    """
    settings = [*KEEPALIVE, *MESSAGE_LIMITS, *RECONNECT, *options]
    interceptors = [] if security.token is None and security.passing is None else _bearer_interceptors(security)
    credentials = security.channel_credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(address, settings, interceptors=interceptors)
    return grpc.aio.secure_channel(address, credentials, [*settings, *TLS_OPTIONS], interceptors=interceptors)


class _Bearer:
    """Adds what is presented now to the metadata of one kind of call."""

    def __init__(self, security: Security) -> None:
        self._security = security

    async def _add(self, continuation: Any, details: grpc.aio.ClientCallDetails, request: Any) -> Any:  # noqa: ANN401
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *self._security.metadata())
        changed = grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )
        return await continuation(changed, request)


class _BearerUnaryUnary(_Bearer, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: ANN401
        return await self._add(continuation, client_call_details, request)


class _BearerUnaryStream(_Bearer, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: ANN401
        return await self._add(continuation, client_call_details, request)


class _BearerStreamUnary(_Bearer, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:  # noqa: ANN401
        return await self._add(continuation, client_call_details, request_iterator)


class _BearerStreamStream(_Bearer, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:  # noqa: ANN401
        return await self._add(continuation, client_call_details, request_iterator)


def _bearer_interceptors(security: Security) -> list[grpc.aio.ClientInterceptor]:
    kinds = (_BearerUnaryUnary, _BearerUnaryStream, _BearerStreamUnary, _BearerStreamStream)
    return [kind(security) for kind in kinds]
