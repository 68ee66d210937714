"""Joining, leases, ghosts and broken streams on a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from expertmesh_api.v1 import membership_pb2, membership_pb2_grpc
from expertmesh_common.clock import SystemClock
from expertmesh_common.security import Security, dial
from expertmesh_controller.control.journal import JOURNAL_KEY, Entry, Reason
from expertmesh_controller.control.store.memory_store import MemoryStore
from models.control_plane import ControlPlane, control_plane
from models.fake_worker import FakeWorker
from models.tiny_bundle import make_tiny_bundle


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


async def reasons(store: MemoryStore) -> list[Reason]:
    return [Entry.decode(data).reason for data in await store.tail(JOURNAL_KEY, 1000)]


def members(plane: ControlPlane) -> dict[str, str]:
    return {w: m.hello.generation for w, m in plane.loop.view().cluster.members.items()}


async def test_a_worker_that_beats_stays(plane: ControlPlane) -> None:
    worker = await FakeWorker(plane.address, "w", 10**7).join()
    await plane.until(lambda: plane.loop.view().cluster.members["w"].rows == 7)
    await plane.until(lambda: plane.loop.view().now - plane.loop.view().cluster.members["w"].joined_at > 1.0)
    assert not worker.over.is_set()
    await worker.die()


async def test_a_worker_hears_a_pulse_while_nothing_happens(plane: ControlPlane) -> None:
    worker = await FakeWorker(plane.address, "w", 10**7).join()
    await plane.until(plane.at_rest)
    epoch, heard = plane.loop.view().epoch, worker.epochs_heard
    await plane.until(lambda: worker.epochs_heard >= heard + 3, within_s=3 * 3 * 0.2)
    assert plane.loop.view().epoch == epoch
    await worker.die()


async def test_a_silent_worker_is_lost_at_the_end_of_its_lease(plane: ControlPlane, store: MemoryStore) -> None:
    worker = await FakeWorker(plane.address, "w", 10**7).join()
    await plane.until(plane.at_rest)
    worker.beating = False
    silent_since = plane.loop.view().now
    await plane.until(lambda: not members(plane), within_s=3.0)
    assert plane.loop.view().now - silent_since > 0.45, "not before the lease of 0.6 s (the last beat was 0.1 s ago)"
    async with asyncio.timeout(5):
        await worker.over.wait()
    assert worker.ended is not None
    assert "lease ended" in (worker.ended.details() or "")
    await plane.until(lambda: plane.loop.view().table.workers == ())
    assert Reason.WORKER_LEASE_EXPIRED in await reasons(store)
    await worker.die()


async def test_a_broken_stream_is_noticed_long_before_the_lease(plane: ControlPlane, store: MemoryStore) -> None:
    worker = await FakeWorker(plane.address, "w", 10**7).join()
    await plane.until(plane.at_rest)
    await worker.die()
    await plane.until(lambda: not members(plane) and not plane.loop.view().table.workers, within_s=0.4)
    assert Reason.WORKER_STREAM_BROKE in await reasons(store)


async def test_a_newer_start_takes_over_and_its_ghost_is_refused(plane: ControlPlane) -> None:
    old = await FakeWorker(plane.address, "w", 10**7, generation="g1").join()
    new = await FakeWorker(plane.address, "w", 10**7, generation="g2").join()
    async with asyncio.timeout(5):
        await old.over.wait()
    assert old.ended is not None
    assert old.ended.code() == grpc.StatusCode.PERMISSION_DENIED
    await old.die()
    ghost = await FakeWorker(plane.address, "w", 10**7, generation="g1").join()
    assert ghost.ended is not None
    assert "g1 was replaced by a later start" in (ghost.ended.details() or "")
    assert members(plane) == {"w": "g2"}
    await plane.until(plane.at_rest)
    assert [w.generation for w in plane.loop.view().table.workers] == ["g2"]
    await ghost.die()
    await new.die()


async def test_a_worker_too_many_versions_away_is_refused_with_a_clear_line(plane: ControlPlane) -> None:
    worker = await FakeWorker(plane.address, "w", 10**7, version="0.9.0").join()
    assert worker.ended is not None
    assert worker.ended.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "0.9.0, this controller 0.1.0" in (worker.ended.details() or "")
    await worker.die()


async def test_a_stream_that_does_not_start_with_hello_is_refused(plane: ControlPlane) -> None:
    async with dial(plane.address, Security()) as channel:
        beat = membership_pb2.WorkerMessage(heartbeat=membership_pb2.Heartbeat(n=1))
        call = membership_pb2_grpc.MembershipStub(channel).Join(iter([beat]))
        with pytest.raises(grpc.aio.AioRpcError, match="first message must be hello"):
            await call.read()


async def test_a_stream_that_says_nothing_is_ended(plane: ControlPlane) -> None:
    async with dial(plane.address, Security()) as channel:
        call = membership_pb2_grpc.MembershipStub(channel).Join()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_worker_that_comes_back_with_its_experts_loads_nothing_again(plane: ControlPlane) -> None:
    first = await FakeWorker(plane.address, "w", 10**7).join()
    await plane.until(plane.at_rest)
    await first.die()
    await plane.until(lambda: not members(plane))
    again = await FakeWorker(plane.address, "w", 10**7, resident=first.held).join()
    await plane.until(plane.at_rest)
    assert again.loads == []
    assert plane.covered()
    await again.die()


async def test_experts_with_other_bytes_are_unloaded_and_loaded_anew(plane: ControlPlane) -> None:
    first = await FakeWorker(plane.address, "w", 10**7).join()
    await plane.until(plane.at_rest)
    await first.die()
    await plane.until(lambda: not members(plane))
    held = dict(first.held)
    stale = next(iter(held))
    changed = membership_pb2.ExpertSpec()
    changed.CopyFrom(held[stale])
    changed.digest = "0" * 64
    again = await FakeWorker(plane.address, "w", 10**7, resident={**held, stale: changed}).join()
    await plane.until(plane.at_rest)
    assert (len(again.unloads), len(again.loads)) == (1, 1)
    assert again.held[stale].digest == held[stale].digest
    await again.die()
