"""Who may talk to whom: mutual TLS between all parts, a bearer token on every call; optional and independent."""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from expertmesh_common.errors import InvalidInput

MAX_MESSAGE_BYTES = 64 * 2**20
# Every certificate of a mesh carries this name, and callers ask for it: parts move between machines and addresses, so
# what is proven is membership of the mesh (its authority signed it), not an address.
MESH_NAME = "expertmesh"
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
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one party: the authority it trusts, its certificate and its key."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def in_folder(cls, folder: Path) -> TlsFiles:
        """`ca.pem`, `cert.pem` and `key.pem` of `folder`.

        Raises:
            InvalidInput: one of them is missing.

        """
        files = cls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
        for path in (files.ca, files.certificate, files.key):
            if not path.is_file():
                raise InvalidInput(f"{path} is missing; a TLS folder holds ca.pem, cert.pem and key.pem")
        return files


@dataclass(frozen=True, slots=True)
class Security:
    """What a process presents and demands. `Security()` is plain text without a token."""

    tls: TlsFiles | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token):
            raise InvalidInput(
                "a token is one or more printable ASCII characters; make one with `openssl rand -hex 16`"
            )

    def accepts(self, presented: str | None) -> bool:
        """Whether a caller's token is right; compared in constant time."""
        if self.token is None:
            return True
        return presented is not None and hmac.compare_digest(presented.encode(), self.token.encode())

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call must carry to be accepted; `dial` adds it by itself."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """Credentials that demand a client certificate, or None for plain text."""
        if self.tls is None:
            return None
        pair = (self.tls.key.read_bytes(), self.tls.certificate.read_bytes())
        return grpc.ssl_server_credentials([pair], root_certificates=self.tls.ca.read_bytes(), require_client_auth=True)

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        if self.tls is None:
            return None
        return grpc.ssl_channel_credentials(
            self.tls.ca.read_bytes(), self.tls.key.read_bytes(), self.tls.certificate.read_bytes()
        )

    def ssl_server_context(self) -> ssl.SSLContext | None:
        """The same demands for the stream transport over TCP."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def ssl_client_context(self) -> ssl.SSLContext | None:
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, protocol: int) -> ssl.SSLContext | None:
        if self.tls is None:
            return None
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.tls.ca)
        context.load_cert_chain(self.tls.certificate, self.tls.key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def dial(address: str, security: Security, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
    """A channel to `address` that presents this process's certificate and token on every call.

    The token is added by interceptors, which cost a queue per message on bidirectional streams: a hot stream is
    dialled with a `Security` without token and passes `metadata=security.metadata()` itself.
    """
    settings = [*KEEPALIVE, *MESSAGE_LIMITS, *RECONNECT, *options]
    interceptors = _bearer_interceptors(security.token) if security.token is not None else []
    credentials = security.channel_credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(address, settings, interceptors=interceptors)
    return grpc.aio.secure_channel(address, credentials, [*settings, *TLS_OPTIONS], interceptors=interceptors)


class _Bearer:
    """Adds the token to the metadata of one kind of call."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    async def _add(self, continuation: Any, details: grpc.aio.ClientCallDetails, request: Any) -> Any:  # noqa: ANN401
        metadata = grpc.aio.Metadata(*(details.metadata or ()), self._entry)
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


def _bearer_interceptors(token: str) -> list[grpc.aio.ClientInterceptor]:
    return [kind(token) for kind in (_BearerUnaryUnary, _BearerUnaryStream, _BearerStreamUnary, _BearerStreamStream)]
