"""Servers away from the controller learn from it whom to let in, and get the pass that they show to each other."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import grpc
import grpc.aio

from expertmesh_api.v1 import access_pb2, access_pb2_grpc
from expertmesh_common.access.scopes import Scope
from expertmesh_common.access.tokens import Accepted
from expertmesh_common.clock import Clock
from expertmesh_common.security import Security, dial

log = logging.getLogger(__name__)

AGAIN_S = 0.2
"""A controller that is back is asked again at once: revocations wait for this."""


class AccessFollower:
    """Keeps the doorkeeper of `security` as the controller at `address` says; without the controller, as it last said.

    A process that demands no token follows nothing.
    """

    def __init__(self, security: Security, address: str, clock: Clock) -> None:
        self._security, self._address, self._clock = security, address, clock
        self._pass: str | None = None
        if security.token is not None:
            security.doorkeeper.await_list()
        self.towards_parts = security if security.token is None else security.towards_parts(lambda: self._pass)
        """For calls to other workers: they get the pass, never the token of this process."""

    async def run(self) -> None:
        """Follow until cancelled."""
        if self._security.token is None:
            return
        told = False
        async with dial(self._address, self._security) as channel:
            while True:
                try:
                    await self._watch(access_pb2_grpc.AccessStub(channel))
                    told = False
                except grpc.aio.AioRpcError as error:
                    if not told:
                        log.warning("whom to let in stays as it was: %s %s", error.code().name, error.details())
                    told = True
                await self._clock.sleep(AGAIN_S)

    async def _watch(self, stub: access_pb2_grpc.AccessStub) -> None:
        call = stub.Watch(access_pb2.WatchAccessRequest())
        try:
            async for message in call:
                self._pass = message.own_pass
                self._security.doorkeeper.publish(from_proto(message, self._clock))
        finally:
            call.cancel()


def to_proto(entries: Iterable[Accepted], own_pass: str, clock: Clock) -> access_pb2.AcceptedTokens:
    """The message for a watcher; times left instead of times, because clocks differ."""
    now = clock.monotonic()
    return access_pb2.AcceptedTokens(
        own_pass=own_pass,
        tokens=[
            access_pb2.AcceptedToken(
                id=entry.id,
                name=entry.name,
                scopes=[scope.value for scope in entry.scopes],
                salt=entry.salt,
                digest=entry.digest,
                ttl_ms=0 if entry.until is None else max(1, int((entry.until - now) * 1000)),
            )
            for entry in entries
        ],
    )


def from_proto(message: access_pb2.AcceptedTokens, clock: Clock) -> list[Accepted]:
    """The inverse of `to_proto`; scopes that this version does not know grant nothing."""
    now, known = clock.monotonic(), {scope.value for scope in Scope}
    return [
        Accepted(
            token.id,
            token.name,
            tuple(Scope(name) for name in token.scopes if name in known),
            token.salt,
            token.digest,
            now + token.ttl_ms / 1000 if token.ttl_ms else None,
        )
        for token in message.tokens
    ]
