"""A gateway of its own, and a control loop that forgot its epochs: over real gRPC."""

from __future__ import annotations

import asyncio

from expertmesh_api.v1 import routes_pb2_grpc
from expertmesh_common.clock import SystemClock
from expertmesh_common.security import Security, dial
from expertmesh_common.serving import Serving
from expertmesh_controller.cluster.incarnations import Incarnations
from expertmesh_controller.cluster.remote_routes import RemoteRoutes
from expertmesh_controller.cluster.routes import EndpointAddress, Epoch, RouteTable, WorkerRoute
from expertmesh_controller.control.bundles_hub import BundlesHub
from expertmesh_controller.control.routes_hub import RoutesHub
from expertmesh_controller.control.routes_service import RoutesService


def table(term: int, n: int, incarnation: str, generation: str = "g") -> RouteTable:
    worker = WorkerRoute("w", generation, (EndpointAddress("grpc", "h:1"),), "host", 1.0)
    return RouteTable(Epoch(term, n), (worker,), (), incarnation)


async def serve(newest: RouteTable, port: int = 0) -> tuple[Serving, int]:
    """A control loop with one table."""
    hub = RoutesHub(lambda report: None, lambda: None)
    hub.publish(newest)
    serving = Serving(Security())
    routes_pb2_grpc.add_RoutesServicer_to_server(RoutesService(hub, BundlesHub()), serving.server)
    return serving, await serving.start(f"127.0.0.1:{port}")


async def test_a_control_loop_that_counts_anew_is_followed_whatever_its_epoch() -> None:
    serving, port = await serve(table(2, 57, "first"))
    async with dial(f"127.0.0.1:{port}", Security()) as channel, asyncio.timeout(20):
        routes = RemoteRoutes(channel, "gw", SystemClock(), retry_s=0.05)
        watches = [routes.watch(), routes.watch()]  # a gateway has one for each model
        before = [await anext(watch) for watch in watches]
        await serving.stop(0.0)
        serving, _ = await serve(table(1, 3, "second", "newer"), port)
        after = [await anext(watch) for watch in watches]
        assert [t.workers[0].generation for t in after] == ["newer", "newer"]
        assert after[0] == after[1], "both models go by the same table"
        assert after[0].epoch > before[0].epoch == Epoch(2, 57), "whoever has the old one takes this"
        assert routes.table == after[0]
        for watch in watches:
            await watch.aclose()
    await serving.stop(0.0)


def test_epochs_are_the_control_loops_own_as_long_as_its_store_lives() -> None:
    seen = Incarnations()
    for epoch in (Epoch(3, 1), Epoch(3, 2), Epoch(9, 1), Epoch(4, 0)):
        assert seen.continued(table(epoch.term, epoch.n, "a")).epoch == epoch


def test_each_incarnation_comes_behind_all_that_were_seen_before_and_stays_there() -> None:
    seen = Incarnations()
    given = [("a", 5), ("b", 1), ("b", 2), ("c", 1), ("b", 3), ("a", 6), ("c", 2), ("d", 99)]
    epochs = [seen.continued(table(term, 7, name)).epoch for name, term in given]
    assert [epoch.term for epoch in epochs] == [5, 6, 7, 8, 8, 6, 9, 99]
    assert {epoch.n for epoch in epochs} == {7}


def test_a_control_loop_of_before_incarnations_is_one_as_well() -> None:
    seen = Incarnations()
    assert seen.continued(table(1, 9, "")).epoch < seen.continued(table(1, 2, "a")).epoch


def test_the_incarnation_survives_the_wire() -> None:
    assert RouteTable.from_proto(table(1, 2, "a").to_proto()) == table(1, 2, "a")
