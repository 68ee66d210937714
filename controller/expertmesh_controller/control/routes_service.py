"""`Routes` over gRPC: what gateways in other processes call."""

from __future__ import annotations

from collections.abc import AsyncIterator

from expertmesh_api.v1 import routes_pb2, routes_pb2_grpc
from expertmesh_common.serving import Context
from expertmesh_controller.cluster.bundles import Bundles
from expertmesh_controller.cluster.reports import GatewayReport
from expertmesh_controller.cluster.routes import Routes


class RoutesService(routes_pb2_grpc.RoutesServicer):
    """Serves any `Routes` and `Bundles`."""

    def __init__(self, routes: Routes, bundles: Bundles) -> None:
        self._routes, self._bundles = routes, bundles

    async def Watch(  # noqa: N802 - the name of the call
        self,
        request: routes_pb2.WatchRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[routes_pb2.RouteTable]:
        async for table in self._routes.watch():
            yield table.to_proto()

    async def WatchBundles(  # noqa: N802 - the name of the call
        self,
        request: routes_pb2.WatchRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[routes_pb2.BundleList]:
        async for offer in self._bundles.watch():
            yield offer.to_proto()

    async def Report(  # noqa: N802 - the name of the call
        self,
        request_iterator: AsyncIterator[routes_pb2.GatewayReport],
        context: Context,  # noqa: ARG002
    ) -> routes_pb2.ReportAck:
        async for message in request_iterator:
            await self._routes.report(GatewayReport.from_proto(message))
        return routes_pb2.ReportAck()
