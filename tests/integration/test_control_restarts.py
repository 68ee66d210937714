"""What a restarted controller knows, and tells, of the time before: from its store, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertmesh_common.clock import SystemClock
from expertmesh_controller.control.store.embedded_store import EmbeddedStore
from expertmesh_controller.control.store.memory_store import MemoryStore
from models.control_plane import control_plane
from models.fake_worker import FakeWorker
from models.tiny_bundle import make_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


async def test_a_ghost_whose_successor_came_while_no_controller_ran_is_refused_after_the_restart(
    bundle: Path, tmp_path: Path
) -> None:
    for generation, admitted in (("g1", True), ("g2", True), ("g1", False)):
        store = await EmbeddedStore.open(tmp_path / "data", SystemClock())
        async with control_plane(bundle, store) as plane:
            await plane.until(lambda plane=plane: plane.loop.leadership.lease is not None)
            worker = await FakeWorker(plane.address, "w", 10**7, generation=generation).join()
            assert (worker.ended is None) == admitted, generation
            if admitted:
                await plane.until(plane.at_rest)
            await worker.die()
        await store.close()


@pytest.mark.parametrize("kept", [True, False], ids=["a store that is kept", "memory"])
async def test_tables_name_the_incarnation_of_the_store_that_counts_their_epochs(
    bundle: Path, tmp_path: Path, kept: bool
) -> None:
    incarnations = []
    for _ in range(2):
        store = await EmbeddedStore.open(tmp_path / "data", SystemClock()) if kept else MemoryStore(SystemClock())
        async with control_plane(bundle, store) as plane:
            worker = await FakeWorker(plane.address, "w", 10**7).join()
            await plane.until(plane.at_rest)
            incarnations.append(plane.loop.view().table.incarnation)
            await plane.until(lambda worker=worker: worker.incarnation == incarnations[-1])
            await worker.die()
        await store.close()
    assert all(incarnations)
    assert (incarnations[0] == incarnations[1]) == kept
