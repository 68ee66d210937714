"""A control loop made of a script: it speaks Membership over real gRPC and does what the test says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import grpc

from expertmesh_api.v1 import access_pb2_grpc, blobs_pb2_grpc, common_pb2, membership_pb2, membership_pb2_grpc
from expertmesh_common.access.following import to_proto
from expertmesh_common.access.scopes import Scope
from expertmesh_common.access.tokens import accepted, new_token
from expertmesh_common.bundle.blob_service import BlobService
from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import MeshError
from expertmesh_common.security import Security
from expertmesh_common.serving import Serving


@dataclass
class Stream:
    """One worker's stream as the control loop sees it."""

    hello: membership_pb2.Hello
    down: asyncio.Queue[membership_pb2.ControlMessage | grpc.StatusCode | None] = field(default_factory=asyncio.Queue)
    heartbeats: asyncio.Queue[membership_pb2.Heartbeat] = field(default_factory=asyncio.Queue)
    results: asyncio.Queue[membership_pb2.OrderResult] = field(default_factory=asyncio.Queue)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def order(self, order: membership_pb2.Order) -> membership_pb2.OrderResult:
        """Send an order, wait for its result."""
        self.down.put_nowait(membership_pb2.ControlMessage(order=order))
        async with asyncio.timeout(20):
            result = await self.results.get()
        assert result.order_id == order.order_id
        return result


class OnePass(access_pb2_grpc.AccessServicer):
    """Gives every worker the same pass."""

    def __init__(self) -> None:
        self._pass = new_token()

    async def Watch(self, request, context):
        yield to_proto([accepted(self._pass, "worker", [Scope.PEER])], self._pass, SystemClock())
        await asyncio.Event().wait()


class ScriptedControl(membership_pb2_grpc.MembershipServicer):
    """Start it, then take streams as workers join. `refusal` makes it refuse them instead."""

    def __init__(self, store: BlobStore, security: Security, term: int = 5) -> None:
        self.joined: asyncio.Queue[Stream] = asyncio.Queue()
        self.refusal: MeshError | None = None
        self.term = term
        self.address = ""
        self._store = store
        self._security = security
        self._order_id = 0

    async def start(self, address: str = "127.0.0.1:0") -> None:
        self._serving = Serving(self._security)
        membership_pb2_grpc.add_MembershipServicer_to_server(self, self._serving.server)
        access_pb2_grpc.add_AccessServicer_to_server(OnePass(), self._serving.server)
        blobs_pb2_grpc.add_BlobsServicer_to_server(BlobService(lambda: (self._store,)), self._serving.server)
        self.address = f"127.0.0.1:{await self._serving.start(address)}"

    async def stop(self) -> None:
        await self._serving.stop(0)

    async def next_worker(self, timeout_s: float = 20) -> Stream:
        async with asyncio.timeout(timeout_s):
            return await self.joined.get()

    def load(self, index, shape, blob, *, sources=None, term=None, resident_bytes=0):
        """An order to load expert m/0/index."""
        spec = membership_pb2.ExpertSpec(
            expert=common_pb2.ExpertRef(model="m", layer=0, index=index), precision=shape.precision,
            digest=blob.digest, blob_bytes=blob.size_bytes, resident_bytes=resident_bytes,
            hidden=shape.hidden, width=shape.width, activation=shape.activation,
            numerics="" if shape.numerics == "exact" else shape.numerics,
        )  # fmt: skip
        addresses = [self.address] if sources is None else sources
        endpoints = [common_pb2.Endpoint(transport="grpc", address=address) for address in addresses]
        return self._order(term, load=membership_pb2.Load(spec=spec, sources=endpoints))

    def unload(self, index, precision, *, term=None):
        expert = common_pb2.ExpertRef(model="m", layer=0, index=index)
        return self._order(term, unload=membership_pb2.Unload(expert=expert, precision=precision))

    def _order(self, term, **action):
        self._order_id += 1
        epoch = common_pb2.Epoch(term=self.term if term is None else term, n=self._order_id)
        return membership_pb2.Order(order_id=self._order_id, epoch=epoch, **action)

    async def Join(self, messages, context):
        first = await anext(messages)
        if self.refusal is not None:
            raise self.refusal
        stream = Stream(first.hello)
        reading = asyncio.create_task(self._read(messages, stream))
        try:
            yield membership_pb2.ControlMessage(
                welcome=membership_pb2.Welcome(
                    lease_ms=3000, heartbeat_ms=50, epoch=common_pb2.Epoch(term=self.term, n=1), version="0.1.0"
                )
            )
            self.joined.put_nowait(stream)
            while (message := await stream.down.get()) is not None:
                if isinstance(message, grpc.StatusCode):
                    await context.abort(message, "so the test says")
                yield message
        finally:
            reading.cancel()
            stream.ended.set()

    async def _read(self, messages, stream):
        async for message in messages:
            match message.WhichOneof("body"):
                case "heartbeat":
                    stream.heartbeats.put_nowait(message.heartbeat)
                case "result":
                    stream.results.put_nowait(message.result)
                case "leave":
                    stream.left.set()
                    stream.down.put_nowait(None)
        stream.down.put_nowait(None)
