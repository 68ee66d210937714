"""Cancelled jobs: nothing half made is left, and what was finished is not done again."""

from __future__ import annotations

import signal

import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_controller import jobs
from expertmesh_controller.control.jobs.limits import JobLimits
from rigs.job_mesh import gone, job_mesh, task_process

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
STEPS_A_LAYER = 33


async def test_a_job_cancelled_in_the_middle_leaves_no_bundle_and_goes_on_when_started_again(
    mesh, long_checkpoint, caplog
):
    job = await mesh.client.jobs.start_import(long_checkpoint, name="big", precisions=PRECISIONS)
    task = await mesh.held(job, 2 * STEPS_A_LAYER)
    assert (await mesh.client.jobs.cancel(job.id)).state == "cancelling"
    task.send_signal(signal.SIGCONT)
    job = await mesh.ended(job)
    assert job.state == "cancelled"
    assert "is killed" not in caplog.text, "it ended by itself"
    assert job.done_steps < job.total_steps
    assert not (mesh.models / "big").exists()
    assert len(list(mesh.models.glob(".big.*.import"))) == 1, "the finished layers are kept"
    again = await mesh.ended(await mesh.client.jobs.start_import(long_checkpoint, name="big", precisions=PRECISIONS))
    assert again.imported is not None
    assert 2 <= again.imported.resumed_steps < 25
    assert [path.name for path in mesh.models.iterdir()] == ["big"]
    assert Bundle(mesh.models / "big").manifest.precisions == PRECISIONS


async def test_a_job_that_waits_is_cancelled_at_once_and_never_runs(mesh, long_checkpoint, checkpoint):
    first = await mesh.client.jobs.start_import(long_checkpoint, name="first")
    second = await mesh.client.jobs.start_import(checkpoint, name="second")
    assert (await mesh.client.jobs.cancel(second.id)).state == "cancelled"
    assert (await mesh.ended(first)).state == "done"
    third = await mesh.client.jobs.start_import(checkpoint, name="third")
    assert (await mesh.ended(third)).state == "done"
    assert not (mesh.models / "second").exists()
    assert (await mesh.client.jobs.cancel(first.id)).state == "done", "what has ended stays as it is"


@pytest.fixture
def impatient(monkeypatch):
    """Controllers that wait half a second for a task to end by itself."""
    monkeypatch.setattr(jobs, "LIMITS", JobLimits(cancel_s=0.5, insist_s=0.5))


@pytest.mark.usefixtures("impatient")
async def test_a_task_that_does_not_end_by_itself_is_killed_and_the_next_job_runs(
    tmp_path, served, long_checkpoint, checkpoint, caplog
):
    async with job_mesh(tmp_path, served) as mesh:
        job = await mesh.client.jobs.start_import(long_checkpoint, name="big", precisions=PRECISIONS)
        task = await mesh.held(job, STEPS_A_LAYER)
        await mesh.client.jobs.cancel(job.id)
        assert (await mesh.ended(job)).state == "cancelled"
        assert "is killed" in caplog.text
        await gone(task)
        assert not (mesh.models / "big").exists()
        assert (await mesh.ended(await mesh.client.jobs.start_import(checkpoint))).state == "done"
        assert (await task_process()).pid != task.pid
