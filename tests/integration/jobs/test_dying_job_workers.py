"""Job workers that are killed: a job is tried once more and goes on where it was; then it is failed with the reason."""

from __future__ import annotations

import pytest

from expertmesh_common.bundle.blobs import Bundle
from rigs.job_mesh import gone, job_worker, kill

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
STEPS_A_LAYER = 33


async def test_a_task_whose_process_is_killed_is_tried_again_and_goes_on(mesh, long_checkpoint):
    job = await mesh.client.jobs.start_import(long_checkpoint, name="big", precisions=PRECISIONS)
    kill(await mesh.held(job, 2 * STEPS_A_LAYER))
    job = await mesh.ended(job)
    assert (job.state, job.attempt, job.error) == ("done", 2, "")
    assert "SIGKILL" in job.note
    assert job.imported is not None
    assert job.imported.resumed_steps >= 2
    Bundle(mesh.models / "big")


async def test_a_job_worker_that_is_killed_is_replaced_and_its_job_goes_on(mesh, long_checkpoint):
    job = await mesh.client.jobs.start_import(long_checkpoint, name="big", precisions=PRECISIONS)
    task, worker = await mesh.held(job, 2 * STEPS_A_LAYER), job_worker()
    assert worker is not None
    kill(worker)
    await gone(task)
    job = await mesh.ended(job)
    assert (job.state, job.attempt, job.error) == ("done", 2, "")
    assert "its job worker died (it ended without a word)" in job.note
    assert job.imported is not None
    assert job.imported.resumed_steps >= 2
    replaced = job_worker()
    assert replaced is not None
    assert replaced.pid != worker.pid


async def test_a_job_whose_worker_dies_twice_has_failed_and_the_next_one_runs(mesh, long_checkpoint, checkpoint):
    job = await mesh.client.jobs.start_import(long_checkpoint, name="big", precisions=PRECISIONS)
    kill(await mesh.held(job, STEPS_A_LAYER))
    await mesh.until(job, lambda seen: seen.attempt == 2 and seen.state == "running")
    kill(await mesh.held(job, 3 * STEPS_A_LAYER))
    job = await mesh.ended(job)
    assert job.state == "failed"
    assert job.error.startswith("its job worker died 2 times: ")
    assert not (mesh.models / "big").exists()
    assert (await mesh.ended(await mesh.client.jobs.start_import(checkpoint))).state == "done"


@pytest.mark.parametrize("disturbed", ["cancelled", "killed"])
async def test_an_import_that_was_disturbed_makes_the_very_bundle_of_one_that_was_not(mesh, long_checkpoint, disturbed):
    plain = await mesh.ended(await mesh.client.jobs.start_import(long_checkpoint, name="plain"))
    job = await mesh.client.jobs.start_import(long_checkpoint, name="other")
    task = await mesh.held(job, STEPS_A_LAYER)
    if disturbed == "cancelled":
        await mesh.client.jobs.cancel(job.id)
        task.resume()
        await mesh.ended(job)
        job = await mesh.client.jobs.start_import(long_checkpoint, name="other")
    else:
        kill(task)
    job = await mesh.ended(job)
    assert (plain.state, job.state, job.error) == ("done", "done", "")
    blobs = [{blob.digest for blob in Bundle(mesh.models / n).manifest.all_blobs()} for n in ("plain", "other")]
    assert blobs[0] == blobs[1]
