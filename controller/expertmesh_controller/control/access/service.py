"""`Access` over gRPC: tokens, the audit, and the list that other servers follow."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from expertmesh_api.v1 import access_pb2, access_pb2_grpc
from expertmesh_common.access.doorkeeper import BOOTSTRAP
from expertmesh_common.access.following import to_proto
from expertmesh_common.access.identity import current_caller
from expertmesh_common.access.scopes import read_scopes
from expertmesh_common.clock import Clock
from expertmesh_common.errors import InvalidInput
from expertmesh_common.serving import Context
from expertmesh_controller.control.access.audit import Audit
from expertmesh_controller.control.access.book import TokenBook
from expertmesh_controller.control.access.record import TokenRecord
from expertmesh_controller.control.journal import Entry

SERVICE_NAME = "expertmesh_api.v1.Access"
LONGEST_TTL_MS = 10 * 366 * 24 * 3600 * 1000
USUAL_AUDIT, MOST_AUDIT = 100, 1000

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# The signatures are the protocol's: some requests are empty, contexts are not needed.


class AccessService(access_pb2_grpc.AccessServicer):
    def __init__(self, book: TokenBook, audit: Audit, clock: Clock) -> None:
        self._book, self._audit, self._clock = book, audit, clock

    async def CreateToken(  # noqa: N802 - the name of the call
        self,
        request: access_pb2.CreateTokenRequest,
        context: Context,  # noqa: ARG002
    ) -> access_pb2.CreateTokenResponse:
        """Raises InvalidInput for a name, scope or time that is not allowed; see `TokenBook.create` for others."""
        if not _NAME.fullmatch(request.name) or request.name == BOOTSTRAP:
            raise InvalidInput(
                f"name: {request.name[:64]!r} is not allowed; write 1 to 64 letters, digits, dots, dashes, underscores"
            )
        if request.ttl_ms > LONGEST_TTL_MS:
            raise InvalidInput(f"ttl_ms: {request.ttl_ms} is more than ten years; 0 means until it is revoked")
        token, record = await self._book.create(request.name, read_scopes(request.scopes), request.ttl_ms)
        return access_pb2.CreateTokenResponse(token=token, info=self._info(record))

    async def ListTokens(  # noqa: N802 - the name of the call
        self,
        request: access_pb2.ListTokensRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> access_pb2.ListTokensResponse:
        return access_pb2.ListTokensResponse(tokens=[self._info(record) for record in self._book.tokens()])

    async def RevokeToken(  # noqa: N802 - the name of the call
        self,
        request: access_pb2.RevokeTokenRequest,
        context: Context,  # noqa: ARG002
    ) -> access_pb2.RevokeTokenResponse:
        if not request.id:
            raise InvalidInput("id: empty; it is the part of a token between the first two underscores")
        return access_pb2.RevokeTokenResponse(info=self._info(await self._book.revoke(request.id)))

    async def ListAudit(  # noqa: N802 - the name of the call
        self,
        request: access_pb2.ListAuditRequest,
        context: Context,  # noqa: ARG002
    ) -> access_pb2.ListAuditResponse:
        if request.limit > MOST_AUDIT:
            raise InvalidInput(f"limit: {request.limit} is more than {MOST_AUDIT}")
        entries = await self._audit.tail(request.limit or USUAL_AUDIT)
        return access_pb2.ListAuditResponse(entries=[_audit_entry(entry) for entry in entries])

    async def Watch(  # noqa: N802 - the name of the call
        self,
        request: access_pb2.WatchAccessRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[access_pb2.AcceptedTokens]:
        holder = current_caller().token_id or BOOTSTRAP
        while not self._book.closed:
            changed = self._book.changed
            yield to_proto(self._book.accepted(), self._book.pass_of(holder), self._clock)
            await changed.wait()

    def _info(self, record: TokenRecord) -> access_pb2.TokenInfo:
        return access_pb2.TokenInfo(
            id=record.id,
            name=record.name,
            scopes=[scope.value for scope in record.scopes],
            state=record.state(self._book.now_ms()),
            created_unix_ms=record.created_ms,
            expires_unix_ms=record.expires_ms,
            revoked_unix_ms=record.revoked_ms,
        )


def _audit_entry(entry: Entry) -> access_pb2.AuditEntry:
    return access_pb2.AuditEntry(at_unix_ms=entry.at_ms, result=entry.decision["result"], **entry.inputs)
