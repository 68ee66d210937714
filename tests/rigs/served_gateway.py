"""A whole gateway behind a real gRPC server on IPv4 and IPv6, with in-process experts and a quiet control loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Self

import grpc

from expertmesh_api.v1 import inference_pb2 as pb
from expertmesh_api.v1 import inference_pb2_grpc
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.security import MAX_MESSAGE_BYTES, Security, dial
from expertmesh_common.serving import Serving
from expertmesh_controller.cluster.reports import GatewayReport
from expertmesh_controller.cluster.routes import Epoch, InstanceRoute, RouteTable, WorkerRoute
from expertmesh_controller.gateway.gateway import Gateway
from expertmesh_controller.gateway.settings import GatewaySettings
from models import tiny_bundle as tiny
from models.numpy_plane import NumpyPlane

ENDLESS = pb.SamplingOptions(ignore_eos=True)


class QuietRoutes:
    """Says once that every expert has an instance."""

    async def watch(self) -> AsyncIterator[RouteTable]:
        worker = WorkerRoute("w1", "g", (), "h", 1.0)
        places = [(layer, index) for layer in range(tiny.LAYERS) for index in range(tiny.EXPERTS)]
        instances = tuple(InstanceRoute("tiny", layer, index, "w1", "fp32") for layer, index in places)
        yield RouteTable(Epoch(1, 1), (worker,), instances)
        await asyncio.Event().wait()

    async def report(self, report: GatewayReport) -> None:
        pass


class ServedGateway:
    """Callers over IPv4 and over IPv6 have different names, as have callers with different tokens."""

    limits = (("grpc.max_send_message_length", 2 * MAX_MESSAGE_BYTES),)
    """What a caller sets who wants to send too much."""

    def __init__(self, bundle: Bundle, **settings) -> None:
        self.plane = NumpyPlane(bundle)
        self.gateway = Gateway(bundle, "fp32", QuietRoutes(), self.plane, GatewaySettings(**settings))
        self.serving = Serving(Security())
        self._channels: list[grpc.aio.Channel] = []

    async def __aenter__(self) -> Self:
        names = self.gateway.add_to(self.serving.server)
        self.port = await self.serving.start("[::]:0", names)
        await self.gateway.start()
        self.one, self.other = self.caller("127.0.0.1"), self.caller("[::1]")
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()
        await self.serving.stop(0)
        await self.gateway.stop()

    def caller(self, host: str, **options: int) -> inference_pb2_grpc.InferenceStub:
        # Each has connections of its own: equal channels would share one.
        own = (("grpc.use_local_subchannel_pool", 1), *((f"grpc.{name}", value) for name, value in options.items()))
        channel = dial(f"{host}:{self.port}", Security(), own)
        self._channels.append(channel)
        return inference_pb2_grpc.InferenceStub(channel)

    async def until(self, condition: Callable[[], bool], within_s: float = 20) -> None:
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110 - seen from outside: nothing signals it
                await asyncio.sleep(0.005)


def asking(first_id: int, max_tokens: int, **fields) -> pb.GenerateRequest:
    ids = pb.TokenIds(ids=[first_id % 256, 6, 7])
    return pb.GenerateRequest(prompt_ids=ids, max_tokens=max_tokens, sampling=ENDLESS, **fields)
