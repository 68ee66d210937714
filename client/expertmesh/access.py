"""Tokens of a mesh and the audit of who changed what; for those who hold a token of scope admin."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

from expertmesh import calls
from expertmesh.calls import Call, Request, Response
from expertmesh.channel import DEFAULT_ADDRESS, Connection, Tls
from expertmesh.endpoints import to_error
from expertmesh_api.v1 import access_pb2

DEADLINE_S = 30.0
AUDIT_ENTRIES = 100


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token without its secret. Times are unix seconds; 0 where it does not expire or was not revoked."""

    id: str
    name: str
    scopes: tuple[str, ...]
    state: str
    created_s: float
    expires_s: float
    revoked_s: float


@dataclass(frozen=True, slots=True)
class NewToken:
    """`token` is shown this once: the mesh keeps no copy of it."""

    token: str
    info: TokenInfo

    def __repr__(self) -> str:
        return f"NewToken(info={self.info!r})"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One call that changed something, or was not allowed to. `at_s` is unix seconds, `result` a gRPC status."""

    at_s: float
    token_id: str
    token_name: str
    peer: str
    method: str
    arguments_digest: str
    result: str


class Access:
    """The `Access` service of a mesh at `address`; use it with `with`.

    Every method raises what calls of `Client` do; PermissionDenied when the token is not of scope admin.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, token: str | None = None, tls: Tls | None = None) -> None:
        connection = Connection(address, token, tls)
        self._address, self._metadata = address, connection.metadata()
        self._channel = connection.open()

    def create(self, name: str, scopes: Sequence[str], *, ttl_s: float = 0.0) -> NewToken:
        """A new token that ends after `ttl_s` seconds; 0: when it is revoked. Scopes: infer, operate, admin, join."""
        request = access_pb2.CreateTokenRequest(name=name, scopes=scopes, ttl_ms=int(ttl_s * 1000))
        answer = self._ask(calls.CREATE_TOKEN, request)
        return NewToken(answer.token, _info(answer.info))

    def tokens(self) -> tuple[TokenInfo, ...]:
        """Every token, also those that ended within the last 30 days."""
        return tuple(_info(info) for info in self._ask(calls.LIST_TOKENS, access_pb2.ListTokensRequest()).tokens)

    def revoke(self, token_id: str) -> TokenInfo:
        """Take a token back: servers refuse it, and end its running streams, within a second."""
        return _info(self._ask(calls.REVOKE_TOKEN, access_pb2.RevokeTokenRequest(id=token_id)).info)

    def audit(self, limit: int = AUDIT_ENTRIES) -> tuple[AuditEntry, ...]:
        """The last `limit` entries, at most 1000, oldest first."""
        answer = self._ask(calls.LIST_AUDIT, access_pb2.ListAuditRequest(limit=limit))
        return tuple(
            AuditEntry(
                e.at_unix_ms / 1000, e.token_id, e.token_name, e.peer, e.method, e.arguments_digest, e.result
            )
            for e in answer.entries
        )  # fmt: skip

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, call: Call[Request, Response], request: Request) -> Response:
        try:
            return call.bind(self._channel)(request, timeout=DEADLINE_S, metadata=self._metadata)
        except grpc.RpcError as error:
            raise to_error(error, self._address) from error


def when(unix_s: float) -> str:
    """A time for people, in this machine's zone; "-" for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s)) if unix_s else "-"


def _info(info: access_pb2.TokenInfo) -> TokenInfo:
    return TokenInfo(
        info.id, info.name, tuple(info.scopes), info.state,
        info.created_unix_ms / 1000, info.expires_unix_ms / 1000, info.revoked_unix_ms / 1000,
    )  # fmt: skip
