"""`Routes` of a control loop in another process, over gRPC."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from expertmesh_api.v1 import routes_pb2, routes_pb2_grpc
from expertmesh_common.clock import Clock
from expertmesh_common.errors import InvalidInput, MeshError, Precondition, Refused, Unauthenticated, Unavailable
from expertmesh_controller.cluster.incarnations import Incarnations
from expertmesh_controller.cluster.reports import GatewayReport
from expertmesh_controller.cluster.routes import RouteTable

log = logging.getLogger(__name__)

REPORT_TIMEOUT_S = 5.0
# Asked again for ever: the control loop may be away for long, and a gateway serves without it.
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)
_REFUSALS: dict[grpc.StatusCode, type[MeshError]] = {
    error.status: error for error in (Unauthenticated, Refused, Precondition, InvalidInput)
}


class RemoteRoutes:
    """Watches through any number of disconnects; `table` keeps the newest table seen."""

    def __init__(self, channel: grpc.aio.Channel, gateway_id: str, clock: Clock, retry_s: float = 0.5) -> None:
        self._stub = routes_pb2_grpc.RoutesStub(channel)
        self._gateway_id = gateway_id
        self._clock = clock
        self._retry_s = retry_s
        self._incarnations = Incarnations()
        self.table: RouteTable | None = None

    async def watch(self) -> AsyncIterator[RouteTable]:
        """Tables with ever later epochs; while the control loop is away the last one stays in force.

        The first table of a control loop that begins to count anew is newer than all before it; see `Incarnations`.

        Raises:
            Unauthenticated, Refused, Precondition, InvalidInput: the control loop refuses us; nothing changes before an
                operator does something about it.
            Unavailable: what answers there is no control loop.

        """
        newest: RouteTable | None = None
        while True:
            call = self._stub.Watch(routes_pb2.WatchRequest(gateway_id=self._gateway_id), wait_for_ready=True)
            try:
                async for message in call:
                    table = self._incarnations.continued(RouteTable.from_proto(message))
                    # A restarted control loop may first repeat, or a replaced leader still send, what we have.
                    if newest is None or table.epoch > newest.epoch:
                        self.table = newest = table
                        yield table
            except grpc.aio.AioRpcError as error:
                if error.code() not in PASSING:
                    raise refusal(error) from error
                log.warning("the control loop is away, the last route table stays in force: %s", error.details())
            finally:
                call.cancel()
            await self._clock.sleep(self._retry_s)

    async def report(self, report: GatewayReport) -> None:
        """Tell the control loop.

        Raises:
            Unavailable: it cannot be reached, or takes none.

        """
        try:
            await self._stub.Report(iter([report.to_proto()]), timeout=REPORT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"the control loop took no report: {error.code().name}: {error.details()}") from error


def refusal(error: grpc.aio.AioRpcError) -> MeshError:
    """The error of this process for a watch that was refused."""
    kind = _REFUSALS.get(error.code(), Unavailable)
    return kind(f"the control loop gives no routes: {error.code().name}: {error.details()}")
