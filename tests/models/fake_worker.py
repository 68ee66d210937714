"""A worker that speaks Membership over a real socket and holds experts by name only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio

from expertmesh_api.v1 import common_pb2, membership_pb2, membership_pb2_grpc
from expertmesh_common.security import Security, dial

Held = tuple[str, int, int, str]


class FakeWorker:
    """Says hello, beats, and answers orders; `on_load` may fail a load by returning an error text.

    With `knows_numerics` False it is of a version that loads everything exact.
    """

    def __init__(
        self, address: str, worker_id: str, budget_bytes: int, *, generation: str = "g1", version: str = "0.1.0",
        speed: float = 1000.0, beat_s: float = 0.1,
        on_load: Callable[[membership_pb2.Load], str | None] = lambda load: None,
        resident: dict[Held, membership_pb2.ExpertSpec] | None = None, knows_numerics: bool = True,
    ) -> None:  # fmt: skip
        self.knows_numerics = knows_numerics
        self.worker_id, self.generation, self.version, self.speed = worker_id, generation, version, speed
        self.budget_bytes, self.beat_s, self.on_load = budget_bytes, beat_s, on_load
        self.beating = True
        self.answering = True
        self.newest_term = 0
        self.epochs_heard = 0
        self.incarnation = ""
        self.held: dict[Held, membership_pb2.ExpertSpec] = dict(resident or {})
        self.order_ids: list[int] = []
        self.loads: list[membership_pb2.Load] = []
        self.unloads: list[membership_pb2.Unload] = []
        self.most_bytes = 0
        self.ended: grpc.aio.AioRpcError | None = None
        self.over = asyncio.Event()
        self.welcomed = asyncio.Event()
        self._channel = dial(address, Security())
        self._up: asyncio.Queue[membership_pb2.WorkerMessage | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def join(self) -> FakeWorker:
        """Start speaking; returns when welcomed or refused."""
        self._up.put_nowait(membership_pb2.WorkerMessage(hello=self.hello()))
        self._call = membership_pb2_grpc.MembershipStub(self._channel).Join(self._outgoing())
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._beat())]
        ended = asyncio.create_task(self.over.wait())
        welcomed = asyncio.create_task(self.welcomed.wait())
        await asyncio.wait([ended, welcomed], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        welcomed.cancel()
        return self

    def hello(self) -> membership_pb2.Hello:
        return membership_pb2.Hello(
            worker_id=self.worker_id, generation=self.generation, version=self.version, host_id="host",
            capabilities=membership_pb2.Capabilities(
                cores=1, memory_bytes=2**30, budget_bytes=self.budget_bytes, speed_rows_per_s=self.speed
            ),
            endpoints=[common_pb2.Endpoint(transport="grpc", address=f"{self.worker_id}:7171")],
            resident=[self._resident(spec) for spec in self.held.values()],
        )  # fmt: skip

    def _resident(self, spec: membership_pb2.ExpertSpec) -> membership_pb2.ResidentExpert:
        fast = self.knows_numerics and spec.numerics == "fast"
        return membership_pb2.ResidentExpert(
            expert=spec.expert, precision=spec.precision, resident_bytes=spec.resident_bytes,
            **{"fast_digest" if fast else "digest": spec.digest},
        )  # fmt: skip

    def say(self, **body: object) -> None:
        """Send one message: a heartbeat, a result, a leave."""
        self._up.put_nowait(membership_pb2.WorkerMessage(**body))

    def leave(self) -> None:
        self.say(leave=membership_pb2.Leave(reason="test"))

    async def die(self) -> None:
        """Cut the connection, as kill -9 does."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()
        await self._channel.close()

    async def _outgoing(self) -> AsyncIterator[membership_pb2.WorkerMessage]:
        while (message := await self._up.get()) is not None:
            yield message

    async def _beat(self) -> None:
        n = 0
        while True:
            await asyncio.sleep(self.beat_s)
            n += 1
            if self.beating:
                self._up.put_nowait(membership_pb2.WorkerMessage(heartbeat=membership_pb2.Heartbeat(n=n, rows=7)))

    async def _listen(self) -> None:
        try:
            async for message in self._call:
                match message.WhichOneof("body"):
                    case "welcome":
                        self.newest_term = max(self.newest_term, message.welcome.epoch.term)
                        self.welcomed.set()
                    case "order":
                        self._carry_out(message.order)
                    case "epoch":
                        self.epochs_heard += 1
                        self.incarnation = message.epoch.incarnation
                        self.newest_term = max(self.newest_term, message.epoch.epoch.term)
        except grpc.aio.AioRpcError as error:
            self.ended = error
        finally:
            self.over.set()

    def _carry_out(self, order: membership_pb2.Order) -> None:
        self.order_ids.append(order.order_id)
        error = None
        if order.epoch.term < self.newest_term:
            error = f"term {order.epoch.term} is old, {self.newest_term} was seen"
        elif order.WhichOneof("action") == "load":
            self.loads.append(order.load)
            error = self.on_load(order.load)
            if error is None:
                spec = order.load.spec
                self.held[spec.expert.model, spec.expert.layer, spec.expert.index, spec.precision] = spec
        else:
            self.unloads.append(order.unload)
            ref = order.unload.expert
            del self.held[ref.model, ref.layer, ref.index, order.unload.precision]
        used = sum(s.resident_bytes for s in self.held.values())
        self.most_bytes = max(self.most_bytes, used)
        if self.answering:
            result = membership_pb2.OrderResult(
                order_id=order.order_id, ok=error is None, error=error or "", resident_bytes=used
            )
            self._up.put_nowait(membership_pb2.WorkerMessage(result=result))
