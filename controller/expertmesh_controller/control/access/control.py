"""Access control of a controller, put together: the book of tokens, the audit, and their service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio

from expertmesh_api.v1 import access_pb2_grpc
from expertmesh_common.clock import Clock
from expertmesh_common.security import Security
from expertmesh_controller.control.access.audit import Audit
from expertmesh_controller.control.access.book import CONTROLLER, TokenBook, configured_tokens
from expertmesh_controller.control.access.service import SERVICE_NAME, AccessService
from expertmesh_controller.control.store.base import Lease, Store


class AccessControl:
    """Give `audit.note` to the server, `load` before it starts, then `run`.

    `join_token` may be presented by workers and gateways besides the token of `security`.
    """

    SERVICE = SERVICE_NAME

    def __init__(self, store: Store, security: Security, join_token: str | None, clock: Clock) -> None:
        self.lease: Callable[[], Lease | None] = lambda: None
        """How to get the control loop's lease, which writing needs; set it once there is a loop."""
        self.audit = Audit(store, self._held)
        self.book = TokenBook(store, security.doorkeeper, clock, self._held)
        self.book.configure(configured_tokens(security.token, join_token, self.book.now_ms()))
        self._security, self._clock = security, clock

    @property
    def towards_parts(self) -> Security:
        """For this controller's own gateway: workers get a pass, never the controller's token."""
        if self._security.token is None:
            return self._security
        return self._security.towards_parts(lambda: self.book.pass_of(CONTROLLER))

    def add_to(self, server: grpc.aio.Server) -> None:
        service = AccessService(self.book, self.audit, self._clock)
        access_pb2_grpc.add_AccessServicer_to_server(service, server)

    async def load(self) -> None:
        await self.book.load()

    async def run(self) -> None:
        """Follow the store until cancelled, and write what waits for it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.book.run(), name="token book")
            group.create_task(self._flush(), name="audit")

    def close(self) -> None:
        """End the streams of those who follow: they would keep the server from stopping."""
        self.book.close()

    def _held(self) -> Lease | None:
        return self.lease()

    async def _flush(self) -> None:
        while True:
            await self._clock.sleep(1.0)
            await self.audit.flush()
