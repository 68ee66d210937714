"""One suite for both sides of `Routes`: in process, and over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from expertmesh_api.v1 import routes_pb2_grpc
from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import Unauthenticated, Unavailable
from expertmesh_common.security import Security, dial
from expertmesh_common.serving import Serving
from expertmesh_controller.cluster.remote_routes import RemoteRoutes
from expertmesh_controller.cluster.reports import ExpertRows, GatewayReport
from expertmesh_controller.cluster.routes import EndpointAddress, Epoch, InstanceRoute, Routes, RouteTable, WorkerRoute
from expertmesh_controller.control.bundles_hub import BundlesHub
from expertmesh_controller.control.routes_hub import RoutesHub
from expertmesh_controller.control.routes_service import RoutesService
from expertmesh_controller.gateway.following import RouteFollower

WORKER = WorkerRoute("w", "g", (EndpointAddress("grpc", "h:1"), EndpointAddress("unix", "/s")), "host", 12.5)


def table(n: int, term: int = 1) -> RouteTable:
    return RouteTable(Epoch(term, n), (WORKER,), (InstanceRoute("m", n, 3, "w", "int4"),))


class Rig:
    def __init__(self) -> None:
        self.reports: list[GatewayReport] = []
        self.seen = asyncio.Event()
        self.hub = RoutesHub(self.reports.append, self.seen.set)
        self.routes: Routes = self.hub

    async def until_seen(self, epoch: Epoch | None) -> None:
        async with asyncio.timeout(5):
            while self.hub.seen() != epoch:
                self.seen.clear()
                await self.seen.wait()


@pytest.fixture(params=["in process", "grpc"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = Rig()
    if request.param == "in process":
        yield rig
        return
    serving = Serving(Security())
    routes_pb2_grpc.add_RoutesServicer_to_server(RoutesService(rig.hub, BundlesHub()), serving.server)
    port = await serving.start("127.0.0.1:0")
    async with dial(f"127.0.0.1:{port}", Security()) as channel:
        rig.routes = RemoteRoutes(channel, "gw", SystemClock())
        yield rig
    await serving.stop(0.0)


async def test_a_watcher_gets_the_table_of_now_whole(rig: Rig) -> None:
    rig.hub.publish(table(1))
    watch = rig.routes.watch()
    assert await anext(watch) == table(1)
    await watch.aclose()


async def test_a_watcher_that_came_early_waits_for_the_first_table(rig: Rig) -> None:
    watch = rig.routes.watch()
    first = asyncio.ensure_future(anext(watch))
    await rig.until_seen(Epoch())
    assert not first.done()
    rig.hub.publish(table(1))
    assert await first == table(1)
    await watch.aclose()


async def test_a_watcher_gets_every_newest_table_in_order(rig: Rig) -> None:
    rig.hub.publish(table(1))
    watch = rig.routes.watch()
    epochs = []
    for n in range(2, 6):
        epochs.append((await anext(watch)).epoch)
        rig.hub.publish(table(n))
    assert epochs == sorted(set(epochs))
    async with asyncio.timeout(5):
        while (await anext(watch)).epoch != Epoch(1, 5):
            pass
    await watch.aclose()


async def test_the_control_loop_learns_what_the_slowest_watcher_uses_and_when_it_is_gone(rig: Rig) -> None:
    rig.hub.publish(table(1))
    watch = rig.routes.watch()
    await anext(watch)
    following = asyncio.ensure_future(anext(watch))
    await rig.until_seen(Epoch(1, 1))
    rig.hub.publish(table(2))
    await following
    last = asyncio.ensure_future(anext(watch))
    await rig.until_seen(Epoch(1, 2))
    last.cancel()
    await asyncio.gather(last, return_exceptions=True)
    await watch.aclose()
    await rig.until_seen(None)


async def test_reports_arrive_whole(rig: Rig) -> None:
    report = GatewayReport("gw", 3, (0, 1, 2), (ExpertRows("m", 1, 2, 30),), ("w",))
    await rig.routes.report(report)
    assert rig.reports == [report]


def test_an_epoch_that_does_not_grow_is_never_published() -> None:
    hub = RoutesHub(lambda report: None, lambda: None)
    hub.publish(table(2))
    with pytest.raises(ValueError, match="does not follow"):
        hub.publish(table(2))
    hub.publish(table(0, term=2))


async def test_a_remote_watcher_reconnects_and_takes_only_newer_tables() -> None:
    ports: list[int] = []

    async def serve(hub: RoutesHub) -> Serving:
        serving = Serving(Security())
        routes_pb2_grpc.add_RoutesServicer_to_server(RoutesService(hub, BundlesHub()), serving.server)
        ports.append(await serving.start(f"127.0.0.1:{ports[0] if ports else 0}"))
        return serving

    first, second = Rig(), Rig()
    first.hub.publish(table(7))
    serving = await serve(first.hub)
    async with dial(f"127.0.0.1:{ports[0]}", Security()) as channel:
        routes = RemoteRoutes(channel, "gw", SystemClock(), retry_s=0.05)
        watch = routes.watch()
        assert await anext(watch) == table(7)
        following = asyncio.ensure_future(anext(watch))
        await serving.stop(0.0)
        with pytest.raises(Unavailable, match="took no report"):
            await routes.report(GatewayReport("gw"))
        assert routes.table == table(7), "the last table stays in force"
        second.hub.publish(table(3))  # an older leader's
        serving = await serve(second.hub)
        await second.until_seen(Epoch(1, 3))
        assert not following.done()
        second.hub.publish(table(1, term=2))
        async with asyncio.timeout(10):
            assert await following == table(1, term=2)
        await watch.aclose()
    await serving.stop(0.0)


class FollowingPlane:
    """Remembers the tables that a follower gives it."""

    def __init__(self) -> None:
        self.tables: asyncio.Queue[RouteTable] = asyncio.Queue()

    def update(self, table: RouteTable) -> None:
        self.tables.put_nowait(table)


async def test_a_gateway_of_an_exact_model_uses_no_copies_of_it_that_are_not(rig: Rig) -> None:
    fast, exact = (InstanceRoute("m", 0, index, "w", "int4", how) for index, how in enumerate(("fast", "exact")))
    of_another = InstanceRoute("other", 0, 0, "w", "int4", "fast")
    mixed = RouteTable(Epoch(1, 1), (WORKER,), (fast, exact, of_another))
    rig.hub.publish(mixed)
    for is_exact, instances in ((True, (exact, of_another)), (False, mixed.instances)):
        plane = FollowingPlane()
        follower = RouteFollower(rig.routes, plane, SystemClock(), "gw", "m", rows=dict, exact=is_exact)
        following = asyncio.create_task(follower.follow())
        async with asyncio.timeout(5):
            assert (await plane.tables.get()).instances == instances
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_a_refused_gateway_says_why_and_follows_as_soon_as_it_is_let_in(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.hub.publish(table(3))

    async def serve(security: Security, port: int = 0) -> tuple[Serving, int]:
        serving = Serving(security)
        routes_pb2_grpc.add_RoutesServicer_to_server(RoutesService(rig.hub, BundlesHub()), serving.server)
        return serving, await serving.start(f"127.0.0.1:{port}")

    serving, port = await serve(Security(token="right"))
    async with dial(f"127.0.0.1:{port}", Security(token="wrong")) as channel:
        routes, plane = RemoteRoutes(channel, "gw", SystemClock(), retry_s=0.05), FollowingPlane()
        with pytest.raises(Unauthenticated, match="gives no routes: UNAUTHENTICATED"):
            await anext(routes.watch())
        follower = RouteFollower(routes, plane, SystemClock(), "gw", "m", rows=dict)
        following = asyncio.create_task(follower.follow())
        while "routes cannot be watched" not in caplog.text:  # noqa: ASYNC110 - a log tells nobody
            await asyncio.sleep(0.01)
        await serving.stop(0.0)
        serving, _ = await serve(Security(token="wrong"), port)
        async with asyncio.timeout(10):
            assert await plane.tables.get() == table(3)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    await serving.stop(0.0)
