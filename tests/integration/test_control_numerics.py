"""Which instances a control loop takes over when the numerics of a model are not those they were loaded for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from expertmesh_api.v1 import common_pb2
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import SystemClock
from expertmesh_controller.control.catalogue import ServedModel
from expertmesh_controller.control.store.memory_store import MemoryStore
from models.control_plane import ControlPlane, control_plane
from models.fake_worker import FakeWorker, Held
from models.tiny_bundle import make_tiny_bundle

FAST = {"numerics": "fast", "local_layers": "none"}
EXACT: dict[str, str] = {}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@contextlib.asynccontextmanager
async def joined(
    bundle: Path, how: dict[str, str], held: dict[Held, object], *, knows_numerics: bool = True
) -> AsyncIterator[tuple[ControlPlane, FakeWorker]]:
    """A new control loop that a worker joins with what it holds, when everything is served."""
    async with control_plane(bundle, MemoryStore(SystemClock()), **how) as plane:
        worker = await FakeWorker(plane.address, "w", 10**7, resident=held, knows_numerics=knows_numerics).join()
        try:
            await plane.until(lambda: plane.at_rest() and plane.covered())
            yield plane, worker
        finally:
            await worker.die()


async def loaded(bundle: Path, how: dict[str, str], *, knows_numerics: bool = True) -> dict[Held, object]:
    """What a worker holds of a model that was served like this."""
    async with joined(bundle, how, {}, knows_numerics=knows_numerics) as (plane, worker):
        numerics = how.get("numerics", "")
        assert [load.spec.numerics for load in worker.loads] == [numerics] * plane.experts
        return dict(worker.held)


def in_table(plane: ControlPlane) -> set[str]:
    assert plane.loop.routes.table is not None
    return {instance.numerics for instance in plane.loop.routes.table.instances}


async def test_what_was_loaded_for_fast_is_loaded_anew_for_exact(bundle: Path) -> None:
    held = await loaded(bundle, FAST)
    async with joined(bundle, EXACT, held) as (plane, worker):
        assert len(worker.unloads) == len(worker.loads) == plane.experts
        assert {spec.numerics for spec in worker.held.values()} == {""}
        assert in_table(plane) == {"exact"}


async def test_what_was_loaded_for_exact_serves_fast_as_it_is(bundle: Path) -> None:
    held = await loaded(bundle, EXACT)
    async with joined(bundle, FAST, held) as (plane, worker):
        assert (worker.loads, worker.unloads) == ([], [])
        assert in_table(plane) == {"exact"}


@pytest.mark.parametrize("how", [FAST, EXACT])
async def test_what_a_worker_without_numerics_loaded_is_exact_whatever_was_ordered(bundle: Path, how) -> None:
    held = await loaded(bundle, FAST, knows_numerics=False)
    async with joined(bundle, how, held, knows_numerics=False) as (plane, worker):
        assert (worker.loads, worker.unloads) == ([], [])
        assert in_table(plane) == {"exact"}


async def test_a_model_that_comes_back_exact_while_its_worker_stays_gets_no_copy_of_before(bundle: Path) -> None:
    async with joined(bundle, FAST, {}) as (plane, worker):
        assert in_table(plane) == {"fast"}
        routed_when_loaded: list[bool] = []
        worker.on_load = lambda load: routed_when_loaded.append(is_routed(plane, load.spec.expert))
        plane.loop.serve([])
        plane.loop.serve([ServedModel("tiny", Bundle(bundle), "fp32")])  # before any round without it

        await plane.until(lambda: exact_copies(worker) == plane.experts and plane.at_rest() and plane.covered())

        assert routed_when_loaded == [False] * plane.experts
        assert len(worker.unloads) == plane.experts
        assert in_table(plane) == {"exact"}


def exact_copies(worker: FakeWorker) -> int:
    return sum(spec.numerics == "" for spec in worker.held.values())


def is_routed(plane: ControlPlane, expert: common_pb2.ExpertRef) -> bool:
    return (expert.layer, expert.index) in plane.loop.routes.table.replicas(expert.model)
