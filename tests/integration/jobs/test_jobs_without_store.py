"""A store that goes away while a job runs: the job does not notice, and nobody takes it for dead."""

from __future__ import annotations

import psutil

from models.small_mesh import eventually
from rigs.job_mesh import kill

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
STEPS_A_LAYER = 33


def store_server() -> psutil.Process:
    """The embedded store's server; only it has such a name."""
    return next(child for child in psutil.Process().children() if "valkey" in child.name() or "redis" in child.name())


async def test_a_job_goes_on_while_its_store_is_away_and_is_not_tried_twice(mesh, long_checkpoint, checkpoint):
    job = await mesh.client.jobs.start_import(long_checkpoint, name="big", precisions=PRECISIONS)
    await mesh.until(job, lambda seen: seen.done_steps >= STEPS_A_LAYER)
    dead = store_server()
    kill(dead)

    async def back() -> bool:
        return any(child.pid != dead.pid for child in psutil.Process().children() if "valkey" in child.name())

    await eventually(back)
    job = await mesh.ended(job)
    assert (job.state, job.attempt, job.note) == ("done", 1, "")
    assert (await mesh.ended(await mesh.client.jobs.start_import(checkpoint))).state == "done"
