"""A model that its gateway holds whole: no worker is dialled for it, so none can be reported as out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_controller.cluster.reports import GatewayReport
from expertmesh_controller.cluster.routes import RouteTable
from expertmesh_controller.gateway.gateway import Gateway
from expertmesh_controller.gateway.settings import GatewaySettings
from models import tiny_bundle as tiny
from models.numpy_plane import NumpyPlane
from rigs.served_gateway import QuietRoutes


class ToldRoutes(QuietRoutes):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[GatewayReport] = asyncio.Queue()
        self.watched = asyncio.Event()

    async def watch(self) -> AsyncIterator[RouteTable]:
        async for table in super().watch():
            yield table
            self.watched.set()  # the follower has come back for the next one

    async def report(self, report: GatewayReport) -> None:
        await self.reports.put(report)


@pytest.mark.parametrize(
    ("held", "tables", "suspects"),
    [(frozenset(range(tiny.LAYERS)), 0, ()), (frozenset({0}), 1, ("w1",)), (None, 1, ("w1",))],
)
async def test_only_a_gateway_with_experts_elsewhere_follows_workers(tmp_path, held, tables, suspects) -> None:
    bundle, routes = Bundle(tiny.make_tiny_bundle(tmp_path)), ToldRoutes()
    plane = NumpyPlane(bundle)
    plane.suspects = ("w1",)
    gateway = Gateway(bundle, "fp32", routes, plane, GatewaySettings(report_interval_s=0.05), held=held)
    await gateway.start()
    try:
        async with asyncio.timeout(10):
            await routes.watched.wait()
            report = await routes.reports.get()
        assert (len(plane.tables), report.suspect_worker_ids) == (tables, suspects)
        assert gateway.ready
    finally:
        await gateway.stop()
