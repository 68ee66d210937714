"""Placement flows over real sockets: workers come, die, return, leave; the table follows."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import grpc
import pytest

from expertmesh_api.v1 import blobs_pb2, blobs_pb2_grpc, operations_pb2, operations_pb2_grpc
from expertmesh_common.clock import SystemClock
from expertmesh_common.security import Security, dial
from expertmesh_controller.control.store.memory_store import MemoryStore
from models.control_plane import ControlPlane, control_plane
from models.fake_worker import FakeWorker
from models.tiny_bundle import make_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
async def plane(bundle: Path):
    async with control_plane(bundle, MemoryStore(SystemClock())) as plane:
        yield plane


async def three(plane: ControlPlane, share: float = 0.6) -> list[FakeWorker]:
    budget = int(plane.expert_bytes * plane.experts * share) + 1
    workers = [await FakeWorker(plane.address, f"w{n}", budget).join() for n in range(3)]
    await plane.until(plane.at_rest)
    return workers


async def test_three_workers_of_sixty_percent_hold_everything_and_second_copies(plane: ControlPlane) -> None:
    workers = await three(plane)
    holders = plane.loop.view().holders()
    assert len(holders) == plane.experts
    assert all(ids for ids in holders.values())
    assert sum(len(ids) for ids in holders.values()) == sum(len(w.held) for w in workers)
    assert all(w.most_bytes <= w.budget_bytes for w in workers)
    for worker in workers:
        await worker.die()


async def test_after_a_worker_died_the_two_others_serve_everything(plane: ControlPlane) -> None:
    workers = await three(plane)
    await workers[0].die()
    await plane.until(lambda: "w0" not in plane.loop.view().cluster.members, within_s=0.5)
    await plane.until(lambda: plane.covered() and plane.at_rest())
    view = plane.loop.view()
    assert {w.worker_id for w in view.table.workers} == {"w1", "w2"}
    assert all(set(ids) <= {"w1", "w2"} and ids for ids in view.holders().values())
    assert all(w.most_bytes <= w.budget_bytes for w in workers)
    for worker in workers[1:]:
        await worker.die()


async def test_a_restarted_worker_is_filled_again(plane: ControlPlane) -> None:
    workers = await three(plane)
    await workers[0].die()
    await plane.until(lambda: plane.covered() and plane.at_rest())
    back = await FakeWorker(plane.address, "w0", workers[0].budget_bytes, generation="g2").join()
    await plane.until(lambda: bool(back.held) and plane.at_rest())
    assert sum(len(ids) > 1 for ids in plane.loop.view().holders().values()) >= plane.experts // 2
    for worker in [back, *workers[1:]]:
        await worker.die()


async def test_a_leaving_worker_keeps_its_routes_until_others_have_them_and_is_then_let_go(plane: ControlPlane) -> None:
    workers = await three(plane)
    gaps: list[int] = []
    watch = plane.loop.routes.watch()
    workers[2].leave()
    async for table in watch:
        gaps.append(plane.experts - len(table.replicas("tiny")))
        if "w2" not in table.by_worker_id:
            break
    await watch.aclose()
    assert set(gaps) == {0}
    async with asyncio.timeout(5):
        await workers[2].over.wait()
    assert workers[2].ended is None, "the stream ends well"
    for worker in workers:
        await worker.die()


async def test_a_watcher_never_sees_an_expert_without_an_instance_while_workers_join(plane: ControlPlane) -> None:
    total = plane.expert_bytes * plane.experts
    first = await FakeWorker(plane.address, "w0", total).join()
    await plane.until(plane.at_rest)
    gaps: list[int] = []

    async def watch() -> None:
        async for table in plane.loop.routes.watch():
            gaps.append(plane.experts - len(table.replicas("tiny")))  # noqa: PERF401 - it never ends

    watching = asyncio.create_task(watch())
    second = await FakeWorker(plane.address, "w1", total).join()
    await plane.until(lambda: len(second.held) == plane.experts and plane.at_rest())
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert gaps
    assert set(gaps) == {0}
    await first.die()
    await second.die()


async def test_a_load_that_fails_on_one_worker_is_made_on_another_and_noted(plane: ControlPlane) -> None:
    total = plane.expert_bytes * plane.experts
    bad = await FakeWorker(plane.address, "bad", total, on_load=lambda load: "disk full").join()
    good = await FakeWorker(plane.address, "good", total).join()
    await plane.until(plane.covered)
    assert bad.held == {}
    assert len(good.held) == plane.experts
    assert bad.loads
    bad.on_load = lambda load: None
    await plane.until(lambda: len(bad.held) == plane.experts and plane.at_rest(), within_s=20)
    await bad.die()
    await good.die()


async def test_an_order_without_answer_is_given_again(plane: ControlPlane) -> None:
    worker = FakeWorker(plane.address, "w", plane.expert_bytes * plane.experts)
    worker.answering = False
    await worker.join()
    async with asyncio.timeout(5):
        while not worker.loads:
            await plane.loop.changed()
    worker.answering = True
    await plane.until(lambda: len(worker.loads) > plane.experts and plane.at_rest(), within_s=10)
    assert plane.covered()
    await worker.die()


async def test_peers_that_hold_an_expert_are_named_before_the_origin(plane: ControlPlane) -> None:
    total = plane.expert_bytes * plane.experts
    first = await FakeWorker(plane.address, "w0", total).join()
    await plane.until(plane.at_rest)
    second = await FakeWorker(plane.address, "w1", total).join()
    await plane.until(lambda: len(second.held) == plane.experts)
    assert [s.address for s in first.loads[0].sources] == [""]
    assert [s.address for s in second.loads[0].sources] == ["w0:7171", ""]
    await first.die()
    await second.die()


async def test_too_little_room_is_told_in_bytes_and_ends_when_a_worker_joins(plane: ControlPlane) -> None:
    first = await FakeWorker(plane.address, "w0", plane.expert_bytes * 5).join()
    async with dial(plane.address, Security()) as channel:
        operations = operations_pb2_grpc.OperationsStub(channel)
        answer = await operations.WaitReady(operations_pb2.WaitReadyRequest(), timeout=1.5)
        assert answer.missing_bytes == plane.expert_bytes * (plane.experts - 5)
        second = await FakeWorker(plane.address, "w1", plane.expert_bytes * plane.experts).join()
        answer = await operations.WaitReady(operations_pb2.WaitReadyRequest(model="tiny"), timeout=5)
        assert (answer.missing_bytes, answer.workers, answer.experts) == (0, 2, plane.experts)
        assert answer.instances == plane.experts + 5
        nodes = (await operations.ListNodes(operations_pb2.ListNodesRequest())).nodes
        assert [(n.worker_id, n.state, n.experts) for n in nodes] == [("w0", "live", 5), ("w1", "live", plane.experts)]
        experts = (await operations.ListExperts(operations_pb2.ListExpertsRequest())).experts
        assert sum(len(e.worker_ids) for e in experts) == plane.experts + 5
        with pytest.raises(grpc.aio.AioRpcError, match="model 'other' is not served here; served: tiny"):
            await operations.ListExperts(operations_pb2.ListExpertsRequest(model="other"))
    await first.die()
    await second.die()


async def test_waiting_for_a_cluster_without_workers_names_all_bytes_as_missing(plane: ControlPlane) -> None:
    async with dial(plane.address, Security()) as channel:
        operations = operations_pb2_grpc.OperationsStub(channel)
        answer = await operations.WaitReady(operations_pb2.WaitReadyRequest(), timeout=0.5)
    assert (answer.workers, answer.missing_bytes) == (0, plane.expert_bytes * plane.experts)


async def test_the_controller_is_the_origin_of_every_blob(plane: ControlPlane) -> None:
    worker = await FakeWorker(plane.address, "w", plane.expert_bytes * plane.experts).join()
    await plane.until(plane.at_rest)
    spec = worker.loads[0].spec
    async with dial(plane.address, Security()) as channel:
        stub = blobs_pb2_grpc.BlobsStub(channel)
        data = b"".join([m.data async for m in stub.Fetch(blobs_pb2.FetchRequest(digest=spec.digest))])
    assert hashlib.sha256(data).hexdigest() == spec.digest
    assert len(data) == spec.blob_bytes
    await worker.die()
