"""`Bundles` of a control loop in another process, over gRPC."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import grpc.aio

from expertmesh_api.v1 import routes_pb2, routes_pb2_grpc
from expertmesh_common.clock import Clock
from expertmesh_controller.cluster.bundles import Offer
from expertmesh_controller.cluster.remote_routes import PASSING, refusal

__all__ = ["RemoteBundles"]

log = logging.getLogger(__name__)


class RemoteBundles:
    """Watches through any number of disconnects; what was served goes on being served meanwhile."""

    def __init__(self, channel: grpc.aio.Channel, gateway_id: str, clock: Clock, retry_s: float = 0.5) -> None:
        self._stub = routes_pb2_grpc.RoutesStub(channel)
        self._gateway_id = gateway_id
        self._clock = clock
        self._retry_s = retry_s

    async def watch(self) -> AsyncIterator[Offer]:
        """Offers, each different from the one before.

        Raises:
            Unauthenticated, Refused, Precondition, InvalidInput: the control loop refuses us.
            Unavailable: what answers there is no control loop.

        """
        newest: Offer | None = None
        while True:
            call = self._stub.WatchBundles(routes_pb2.WatchRequest(gateway_id=self._gateway_id), wait_for_ready=True)
            try:
                async for message in call:
                    offer = Offer.from_proto(message)
                    if offer != newest:
                        newest = offer
                        yield offer
            except grpc.aio.AioRpcError as error:
                if error.code() not in PASSING:
                    raise refusal(error) from error
                log.warning("the control loop is away, the same models stay served: %s", error.details())
            finally:
                call.cancel()
            await self._clock.sleep(self._retry_s)
