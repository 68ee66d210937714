"""What was served at run time is served again after a restart, whatever the store and the disk do meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import NotHere, Unavailable
from expertmesh_controller.cluster.bundles import LeavingModel
from expertmesh_controller.cluster.models import ModelSpec
from expertmesh_controller.control.loop import ControlLoop
from expertmesh_controller.control.models.hosting import NoGateway
from expertmesh_controller.control.models.keeping import ModelKeeper
from expertmesh_controller.control.store.base import Lease
from expertmesh_controller.control.store.memory_store import MemoryStore
from models.control_plane import QUICK
from models.tiny_bundle import make_tiny_bundle


class AwayStore(MemoryStore):
    """A store that takes its time to write, and can be out of reach for readers."""

    away = False

    async def get(self, key: str) -> bytes | None:
        if self.away:
            raise Unavailable("the store is away")
        return await super().get(key)

    async def put(self, lease: Lease, key: str, value: bytes) -> None:
        await asyncio.sleep(0.01)  # as over a network: others go on meanwhile
        await super().put(lease, key, value)


@pytest.fixture
def store() -> AwayStore:
    return AwayStore(SystemClock())


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kept")
    return {name: make_tiny_bundle(root / name, seed) for seed, name in enumerate("abc")}


@contextlib.asynccontextmanager
async def keeper(store: MemoryStore, *given: ModelSpec, leads: bool = True) -> AsyncIterator[ModelKeeper]:
    """The keeper of a controller that has just started."""
    loop = ControlLoop((), store, SystemClock(), QUICK, version="0.1.0")
    found = ModelKeeper(loop, NoGateway(), store, SystemClock(), given)
    await found.start()
    running = asyncio.create_task(loop.run())
    if leads:
        async with asyncio.timeout(5):
            while loop.leadership.lease is None:
                await loop.changed()
    try:
        yield found
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await loop.stop()


def spec(folders, name: str, **changes) -> ModelSpec:
    return ModelSpec(name, folders[name], "fp32", 2, **changes)


def names(found: ModelKeeper) -> list[tuple[str, str]]:
    return [(kept.spec.name, kept.state) for kept in found.kept()]


async def test_models_that_came_and_went_stay_so_over_a_restart(store, folders):
    async with keeper(store, spec(folders, "a")) as first:
        await first.serve(spec(folders, "b", budget_share=0.5))
        await first.unserve("a", 0)
    async with keeper(store, spec(folders, "a")) as second:
        assert [kept.spec for kept in second.kept()] == [spec(folders, "b", budget_share=0.5)]
    async with keeper(store, spec(folders, "c")) as third:  # the operator says something new
        assert names(third) == [("b", "serving"), ("c", "serving")]


async def test_two_models_served_at_once_are_both_on_record(store, folders):
    async with keeper(store, spec(folders, "a")) as first:
        await asyncio.gather(first.serve(spec(folders, "b")), first.serve(spec(folders, "c")))
    async with keeper(store, spec(folders, "a")) as second:
        assert names(second) == [("a", "serving"), ("b", "serving"), ("c", "serving")]


async def test_who_asks_for_the_same_twice_at_once_gets_the_same(store, folders):
    async with keeper(store, spec(folders, "a")) as found:
        first, second = await asyncio.gather(found.serve(spec(folders, "b")), found.serve(spec(folders, "b")))
        assert first is second


async def test_a_bundle_that_is_gone_after_a_restart_is_shown_as_failed_and_may_be_served_or_taken_away(
    store, folders, tmp_path
):
    moving = make_tiny_bundle(tmp_path / "moving", seed=7)
    asked = ModelSpec("b", moving, "fp32", 2)
    async with keeper(store, spec(folders, "a")) as first:
        await first.serve(asked)
    moving.rename(tmp_path / "moved")
    async with keeper(store, spec(folders, "a")) as second:
        assert names(second) == [("a", "serving"), ("b", "failed")]
        assert str(moving) in second.kept()[1].error
        with pytest.raises(NotHere):
            await second.serve(asked)
        assert names(second) == [("a", "serving"), ("b", "failed")]
        (tmp_path / "moved").rename(moving)
        await second.serve(asked)
        assert names(second) == [("a", "serving"), ("b", "serving")]
        await second.unserve("b", 0)
    async with keeper(store, spec(folders, "a")) as third:
        assert names(third) == [("a", "serving")]


async def test_a_bundle_of_the_settings_that_is_not_there_ends_the_start(store, tmp_path):
    with pytest.raises(NotHere, match="nothing"):
        async with keeper(store, ModelSpec("", tmp_path / "nothing", "fp32", 2)):
            pass


async def test_while_the_store_is_away_nothing_changes_and_when_it_is_back_everything_is_served_again(store, folders):
    async with keeper(store, spec(folders, "a")) as first:
        await first.serve(spec(folders, "b"))
        await first.unserve("a", 0)
    store.away = True
    async with keeper(store, spec(folders, "a"), leads=False) as second:
        assert names(second) == [("a", "serving")]
        restoring = asyncio.create_task(second.restore())
        with pytest.raises(Unavailable):
            await second.serve(spec(folders, "c"))
        assert names(second) == [("a", "serving")]
        store.away = False
        async with asyncio.timeout(10):
            await restoring
        assert names(second) == [("b", "serving")]


async def test_a_controller_that_does_not_lead_changes_nothing(store, folders):
    lease = await store.acquire("control-loop", "somebody else", 60)
    assert lease is not None
    async with keeper(store, spec(folders, "a"), leads=False) as found:
        with pytest.raises(Unavailable, match="does not lead"):
            await found.serve(spec(folders, "b"))
        with pytest.raises(Unavailable, match="does not lead"):
            await found.unserve("a", 0)
        assert names(found) == [("a", "serving")]


async def test_gateways_of_their_own_are_told_how_long_the_answers_of_a_leaving_model_may_go_on(store, folders):
    async with keeper(store, spec(folders, "a"), spec(folders, "b")) as models:
        watch = models._loop.bundles.watch()
        assert [bundle.model for bundle in (await anext(watch)).bundles] == ["a", "b"]
        going = asyncio.create_task(models.unserve("b", drain_s=7.5))
        async with asyncio.timeout(10):
            offer = await anext(watch)
            assert [bundle.model for bundle in offer.bundles] == ["a"]
            assert offer.leaving == (LeavingModel("b", 7.5),)
            await going
            assert (await anext(watch)).leaving == ()
        await watch.aclose()
