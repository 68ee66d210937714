"""What a controller that ends does about jobs, when its store never said which there are."""

from __future__ import annotations

from expertmesh_common.clock import ManualClock
from expertmesh_controller.control.jobs.keeping import JobKeeper
from expertmesh_controller.control.jobs.limits import JobLimits
from expertmesh_controller.control.store.memory_store import MemoryStore


async def test_a_keeper_that_never_saw_its_jobs_has_nothing_to_put_back():
    clock = ManualClock()
    store, written = MemoryStore(clock), []

    async def keep(key, value):
        written.append(key)

    keeper = JobKeeper(store, None, keep, lambda: None, clock=clock, names={}, limits=JobLimits())
    await keeper.settle("job-worker-")
    assert written == []
