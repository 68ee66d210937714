"""Workers that gateways cannot reach, and workers that crash in a row: real streams, reports over the real service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from expertmesh_api.v1 import operations_pb2, operations_pb2_grpc
from expertmesh_common.clock import SystemClock
from expertmesh_common.security import Security, dial
from expertmesh_controller.cluster.remote_routes import RemoteRoutes
from expertmesh_controller.cluster.reports import ExpertRows, GatewayReport
from expertmesh_controller.control.journal import JOURNAL_KEY, Entry, Reason
from expertmesh_controller.control.store.memory_store import MemoryStore
from models.control_plane import QUICK, ControlPlane, control_plane
from models.fake_worker import FakeWorker
from models.tiny_bundle import make_tiny_bundle

REPORT_S = 0.05


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(SystemClock())


@pytest.fixture
async def plane(bundle: Path, store: MemoryStore):
    async with control_plane(bundle, store) as plane:
        yield plane


@contextlib.asynccontextmanager
async def gateway_without_links_to(plane: ControlPlane, *worker_ids: str) -> AsyncIterator[None]:
    """A gateway that reports the same suspects again and again."""

    async def report(routes: RemoteRoutes) -> None:
        while True:
            await routes.report(GatewayReport("g", suspect_worker_ids=worker_ids))
            await asyncio.sleep(REPORT_S)

    async with dial(plane.address, Security()) as channel:
        reporting = asyncio.create_task(report(RemoteRoutes(channel, "g", SystemClock())))
        yield
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)


async def states(plane: ControlPlane) -> dict[str, str]:
    async with dial(plane.address, Security()) as channel:
        listed = await operations_pb2_grpc.OperationsStub(channel).ListNodes(operations_pb2.ListNodesRequest())
    return {node.worker_id: node.state for node in listed.nodes}


async def noted(store: MemoryStore) -> list[tuple[Reason, object]]:
    entries = [Entry.decode(data) for data in await store.tail(JOURNAL_KEY, 1000)]
    return [(e.reason, e.inputs.get("worker_id")) for e in entries]


def holders(plane: ControlPlane) -> set[str]:
    """Who serves what nobody else serves."""
    return {ids[0] for ids in plane.loop.view().holders().values() if len(ids) == 1}


async def test_experts_that_only_an_unreachable_worker_holds_are_loaded_elsewhere_and_come_back_with_it(
    plane: ControlPlane, store: MemoryStore
) -> None:
    total = plane.expert_bytes * plane.experts
    cut_off = await FakeWorker(plane.address, "w0", total).join()
    await plane.until(plane.at_rest)
    other = await FakeWorker(plane.address, "w1", total).join()
    await plane.until(plane.at_rest)
    await other.die()
    await plane.until(lambda: holders(plane) == {"w0"})
    async with gateway_without_links_to(plane, "w0"):
        other = await FakeWorker(plane.address, "w1", total).join()
        await plane.until(lambda: plane.loop.view().cluster.unreachable == {"w0"})
        await plane.until(lambda: holders(plane) == {"w1"} and plane.at_rest())
        assert await states(plane) == {"w0": "unreachable", "w1": "live"}
        assert cut_off.unloads == [], "it keeps what it holds until it is reached again"
    loads = len(cut_off.loads)
    await plane.until(lambda: not plane.loop.view().cluster.suspects and plane.at_rest())
    assert await states(plane) == {"w0": "live", "w1": "live"}
    assert len(cut_off.loads) == loads, "nothing is loaded again"
    found = await noted(store)
    for reason in (Reason.WORKER_SUSPECTED, Reason.WORKER_UNREACHABLE, Reason.WORKER_REACHABLE):
        assert found.count((reason, "w0")) == 1
    for worker in (cut_off, other):
        await worker.die()


async def test_one_failed_call_moves_nothing(plane: ControlPlane, store: MemoryStore) -> None:
    total = plane.expert_bytes * plane.experts
    workers = [await FakeWorker(plane.address, f"w{n}", total).join() for n in range(2)]
    await plane.until(plane.at_rest)
    before = plane.loop.view()
    await plane.loop.routes.report(GatewayReport("g", suspect_worker_ids=("w0",)))
    assert plane.loop.view().cluster.suspects == {"w0"}
    await plane.until(lambda: not plane.loop.view().cluster.suspects)
    assert plane.loop.view().table == before.table
    assert (Reason.WORKER_UNREACHABLE, "w0") not in await noted(store)
    for worker in workers:
        await worker.die()


async def test_rows_of_many_reports_never_grow_beyond_what_can_be_told(plane: ControlPlane) -> None:
    (model, layer, index), *_ = ((key.model, key.layer, key.index) for key in plane.loop.view().catalogue)
    most = GatewayReport("g", rows=(ExpertRows(model, layer, index, 2**63),))
    for _ in range(3):
        await plane.loop.routes.report(most)
    async with dial(plane.address, Security()) as channel:
        listed = await operations_pb2_grpc.OperationsStub(channel).ListExperts(operations_pb2.ListExpertsRequest())
    assert max(placed.rows for placed in listed.experts) == 2**63


async def test_rows_of_models_that_are_not_served_are_not_kept(plane: ControlPlane) -> None:
    (model, layer, index), *_ = ((key.model, key.layer, key.index) for key in plane.loop.view().catalogue)
    strangers = tuple(ExpertRows(f"stranger-{n}", layer, index, 1) for n in range(100))
    await plane.loop.routes.report(GatewayReport("g", rows=(*strangers, ExpertRows(model, layer, index, 5))))
    assert plane.loop.view().rows == {(model, layer, index): 5}
    plane.loop.serve(())
    assert plane.loop.view().rows == {}


async def test_nobody_hands_over_to_a_newcomer_before_gateways_had_the_time_to_miss_it(bundle: Path) -> None:
    """A worker behind a firewall joins well; what it took over at once would be lost to every gateway."""
    settings = replace(QUICK, probation_s=1.0, leave_most_s=5.0)
    async with control_plane(bundle, MemoryStore(SystemClock()), settings) as plane:
        total = plane.expert_bytes * plane.experts
        old = await FakeWorker(plane.address, "w0", total).join()
        await plane.until(plane.at_rest)
        new = await FakeWorker(plane.address, "w1", total).join()
        joined_at = plane.loop.view().cluster.members["w1"].joined_at
        old.leave()
        await plane.until(lambda: len(new.held) == plane.experts)
        assert not old.over.is_set()
        await plane.until(lambda: "w0" not in plane.loop.view().cluster.members)
        assert plane.loop.view().now - joined_at >= 1.0
        for worker in (old, new):
            await worker.die()


async def test_a_worker_that_crashes_in_a_row_gets_no_experts_for_a_while_and_is_listed_as_unstable(
    plane: ControlPlane, store: MemoryStore
) -> None:
    total = plane.expert_bytes * plane.experts
    steady = await FakeWorker(plane.address, "w0", total).join()
    for n in range(3):
        crashing = await FakeWorker(plane.address, "w1", total, generation=f"g{n}").join()
        await plane.until(lambda: plane.loop.view().cluster.members["w1"].resident_bytes > 0)
        await crashing.die()
        await plane.until(lambda: "w1" not in plane.loop.view().cluster.members)
    flapping = await FakeWorker(plane.address, "w1", total, generation="g3").join()
    assert await states(plane) == {"w0": "live", "w1": "unstable"}
    await plane.until(plane.at_rest)
    assert flapping.loads == []
    assert plane.covered()
    await plane.until(lambda: len(flapping.held) == plane.experts and plane.at_rest(), within_s=6.0)
    assert await states(plane) == {"w0": "live", "w1": "live"}
    assert (await noted(store)).count((Reason.WORKER_UNSTABLE, "w1")) == 1
    for worker in (steady, flapping):
        await worker.die()
