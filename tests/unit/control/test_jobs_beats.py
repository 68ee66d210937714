"""Who vouches for a task, from what job workers leave in the store."""

from __future__ import annotations

import pytest

from expertmesh_common.clock import ManualClock
from expertmesh_common.jobs.importing import Progress
from expertmesh_common.jobs.wire import NEWEST_BEAT_KEY, Beat, beat_key
from expertmesh_controller.control.jobs.advancing import Company, Sight
from expertmesh_controller.control.jobs.beats import Beats
from expertmesh_controller.control.store.memory_store import MemoryStore

RUNNING = Sight("running", Progress(worker="w"))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock) -> MemoryStore:
    return MemoryStore(clock)


async def beat(store: MemoryStore, running: str) -> None:
    lease = await store.acquire("any", "me", 60)
    assert lease is not None
    for key in (beat_key("w"), NEWEST_BEAT_KEY):
        await store.put(lease, key, Beat(worker="w", running=running).model_dump_json().encode())


async def test_silence_counts_from_when_the_worker_last_named_the_task(store, clock):
    beats = Beats(store, clock)
    beats.begin("t")
    clock.advance(1.0)
    assert await beats.company("t", RUNNING) == Company(1.0, anybody=False)
    await beat(store, "t")
    clock.advance(1.0)
    assert await beats.company("t", RUNNING) == Company(0.0, anybody=True)
    await beat(store, "another")
    clock.advance(1.5)
    assert await beats.company("t", RUNNING) == Company(1.5, anybody=True)


async def test_after_the_store_was_away_silence_counts_anew(store, clock):
    beats = Beats(store, clock)
    beats.begin("t")
    clock.advance(60.0)
    beats.forget()
    assert (await beats.company("t", RUNNING)).silent_s == 0.0
    clock.advance(1.0)
    assert (await beats.company("t", RUNNING)).silent_s == 1.0
