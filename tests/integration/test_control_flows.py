"""Placement flows over real sockets: workers come, die, return, leave; the table follows."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertmesh_common.clock import SystemClock
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
