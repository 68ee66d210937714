"""`Membership` over gRPC: one stream per worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from expertmesh_api.v1 import membership_pb2, membership_pb2_grpc
from expertmesh_common.errors import DeadlinePassed, InvalidInput
from expertmesh_common.serving import Context
from expertmesh_controller.cluster.routes import Epoch
from expertmesh_controller.control.membership.hello import Hello, read_hello
from expertmesh_controller.control.membership.registry import Connection, Registry
from expertmesh_controller.control.settings import ControlSettings

Incoming = AsyncIterator[membership_pb2.WorkerMessage]


class MembershipService(membership_pb2_grpc.MembershipServicer):
    """Hands messages to the registry and sends what it says. `epoch` is the newest one, told at welcome and pulse."""

    def __init__(
        self, registry: Registry, version: str, settings: ControlSettings, epoch: Callable[[], tuple[Epoch, str]]
    ) -> None:
        self._registry = registry
        self._version = version
        self._heartbeat_s = settings.heartbeat_s
        self._pulse_s = min(settings.pulse_s, settings.lease_s / 3)
        self._epoch = epoch

    async def Join(  # noqa: N802 - the name of the call
        self,
        request_iterator: Incoming,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[membership_pb2.ControlMessage]:
        """Welcome a worker, then send it orders and epochs until its stream or its membership ends.

        Raises:
            InvalidInput, Precondition, Refused: the hello; see `read_hello` and `admit`.
            DeadlinePassed: no hello within the lease.

        """
        incoming = aiter(request_iterator)
        connection = self._registry.join(await self._hello(incoming))
        reader = asyncio.create_task(self._read(incoming, connection))
        try:
            yield self._welcome()
            while (message := await self._next(connection)) is not None:
                yield message
        finally:
            reader.cancel()
            self._registry.broke(connection)

    async def _hello(self, incoming: Incoming) -> Hello:
        lease_s = self._registry.cluster.limits.lease_s
        try:
            async with asyncio.timeout(lease_s):
                first = await anext(incoming)
        except TimeoutError:
            raise DeadlinePassed(f"no hello within {lease_s:g} s of opening the stream") from None
        except StopAsyncIteration:
            raise InvalidInput("the stream ended before its hello") from None
        if first.WhichOneof("body") != "hello":
            raise InvalidInput(f"the first message must be hello, it is {first.WhichOneof('body')}")
        return read_hello(first.hello, self._version)

    async def _next(self, connection: Connection) -> membership_pb2.ControlMessage | None:
        """The next message, or the epoch once more: workers tell a quiet controller from a hung one by it."""
        try:
            async with asyncio.timeout(self._pulse_s):
                return await connection.next()
        except TimeoutError:
            epoch, incarnation = self._epoch()
            pulse = membership_pb2.EpochChanged(epoch=epoch.to_proto(), incarnation=incarnation)
            return membership_pb2.ControlMessage(epoch=pulse)

    async def _read(self, incoming: Incoming, connection: Connection) -> None:
        """The end of the stream is the end of the worker: whoever lives keeps it open."""
        try:
            async for message in incoming:
                self._registry.hear(connection, message)
        finally:
            self._registry.broke(connection)
            connection.close()

    def _welcome(self) -> membership_pb2.ControlMessage:
        epoch, incarnation = self._epoch()
        return membership_pb2.ControlMessage(
            welcome=membership_pb2.Welcome(
                lease_ms=int(self._registry.cluster.limits.lease_s * 1000),
                heartbeat_ms=int(self._heartbeat_s * 1000),
                pulse_ms=int(self._pulse_s * 1000),
                epoch=epoch.to_proto(),
                incarnation=incarnation,
                version=self._version,
            )
        )
