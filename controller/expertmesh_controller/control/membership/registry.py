"""The acting half of membership: connections, their outboxes, and the state they change."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping

from expertmesh_api.v1 import membership_pb2
from expertmesh_common.clock import Clock
from expertmesh_common.errors import MeshError, Refused
from expertmesh_controller.cluster.routes import Epoch
from expertmesh_controller.control.membership.applying import admit, apply
from expertmesh_controller.control.membership.hello import Hello
from expertmesh_controller.control.membership.state import (
    Answered,
    Broke,
    Cluster,
    Event,
    Heard,
    Joined,
    LeaveAsked,
    Limits,
    Ordered,
    Restored,
    SentOrder,
    Suspected,
    Ticked,
)

log = logging.getLogger(__name__)

OnChange = Callable[[Cluster, Cluster, Event], None]


class Connection:
    """One worker's stream: messages for it, then its end."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._outbox: asyncio.Queue[membership_pb2.ControlMessage | MeshError | None] = asyncio.Queue()

    def send(self, message: membership_pb2.ControlMessage) -> None:
        self._outbox.put_nowait(message)

    def close(self, error: MeshError | None = None) -> None:
        """End the stream after what was sent: well, or with an error that the worker sees."""
        self._outbox.put_nowait(error)

    async def next(self) -> membership_pb2.ControlMessage | None:
        """The next message, or None at the end. Raises the error that the stream was closed with."""
        item = await self._outbox.get()
        if isinstance(item, MeshError):
            raise item
        return item


class Registry:
    """Turns messages into events; calls `on_change(before, after, event)` for those that changed anything."""

    def __init__(self, limits: Limits, clock: Clock, on_change: OnChange) -> None:
        self.cluster = Cluster(limits)
        self._clock = clock
        self._on_change = on_change
        self._connections: dict[int, Connection] = {}
        self._numbers = itertools.count(1)
        # From anywhere, so that no two controllers give the same ids, whatever store counts their terms: older workers
        # send their next controller what became of orders of the last one, and that must be none of its own.
        self._order_ids = itertools.count(secrets.randbits(62))
        self.orders_sent = 0

    def join(self, hello: Hello) -> Connection:
        """Let a worker in; an older connection of it is closed.

        Raises:
            Refused: it is a ghost.

        """
        admit(self.cluster, hello)
        connection = Connection(next(self._numbers))
        self._connections[connection.number] = connection
        self._apply(Joined(hello, connection.number, self._clock.monotonic()))
        return connection

    def hear(self, connection: Connection, message: membership_pb2.WorkerMessage) -> None:
        """Take a message of a joined worker. One on a connection that was replaced or lost changes nothing."""
        now, number = self._clock.monotonic(), connection.number
        match message.WhichOneof("body"):
            case "heartbeat":
                self._apply(Heard(number, now, message.heartbeat.rows))
            case "result":
                result = message.result
                self._apply(Answered(number, result.order_id, result.ok, result.error, now))
            case "leave":
                self._apply(LeaveAsked(number, now))
            case other:
                log.warning("ignored a message from a worker connection=%d body=%s", number, other)

    def suspect(self, gateway_id: str, worker_ids: Iterable[str]) -> None:
        """A gateway has no link to these workers."""
        self._apply(Suspected(gateway_id, frozenset(worker_ids), self._clock.monotonic()))

    def broke(self, connection: Connection) -> None:
        """The stream ended."""
        self._connections.pop(connection.number, None)
        self._apply(Broke(connection.number))

    def restore(self, retired: Mapping[str, tuple[str, ...]], generations: Mapping[str, str]) -> None:
        """Remember the starts that were known, and those superseded, before this controller led."""
        self._apply(Restored(retired, generations))

    def tick(self) -> None:
        self._apply(Ticked(self._clock.monotonic()))

    def order(self, order: SentOrder, epoch: Epoch, message: membership_pb2.Order) -> None:
        """Send an order, filling in its id and epoch."""
        member = self.cluster.members[order.worker_id]
        message.order_id = next(self._order_ids)
        self.orders_sent += 1
        message.epoch.CopyFrom(epoch.to_proto())
        self._apply(Ordered(message.order_id, order))
        self._connections[member.connection].send(membership_pb2.ControlMessage(order=message))

    def announce(self, epoch: Epoch, incarnation: str) -> None:
        """Tell every worker of the newest epoch."""
        message = membership_pb2.ControlMessage(
            epoch=membership_pb2.EpochChanged(epoch=epoch.to_proto(), incarnation=incarnation)
        )
        for member in self.cluster.members.values():
            self._connections[member.connection].send(message)

    def let_go(self, worker_id: str) -> None:
        """Close the stream of a worker that asked to leave: nothing is routed to it any more."""
        connection = self._connections[self.cluster.members[worker_id].connection]
        self._apply(Broke(connection.number))

    def close(self) -> None:
        """End every stream; the workers will look for a controller again."""
        for connection in self._connections.values():
            connection.close()

    def _apply(self, event: Event) -> None:
        before, self.cluster = self.cluster, apply(self.cluster, event)
        if self.cluster is before:
            return
        self._close_lost(before, event)
        self._on_change(before, self.cluster, event)

    def _close_lost(self, before: Cluster, event: Event) -> None:
        """Connections of members that were replaced, expired or let go are over."""
        speaking = {m.connection for m in self.cluster.members.values()}
        for member in before.members.values():
            if member.connection in speaking:
                continue
            connection = self._connections.pop(member.connection, None)
            if connection is not None:
                connection.close(None if isinstance(event, Broke) else _why(member.hello, event))


def _why(hello: Hello, event: Event) -> MeshError:
    if isinstance(event, Joined):
        return Refused(f"worker {hello.worker_id} of generation {hello.generation} was replaced by another connection")
    if isinstance(event, Restored):
        return Refused(f"worker {hello.worker_id} of generation {hello.generation} was replaced by a later start of it")
    return Refused(f"worker {hello.worker_id}: its lease ended without a heartbeat; say hello again")
