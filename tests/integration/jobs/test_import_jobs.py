"""Imports as jobs of a running mesh: a real store, a real job worker, the real importer."""

from __future__ import annotations

import pytest

from expertmesh import FailedPrecondition, InvalidRequest, NotFound
from expertmesh_common.bundle.blobs import Bundle
from models.small_mesh import eventually, small_mesh
from rigs.job_mesh import job_mesh, job_worker

STEPS_A_LAYER = 33


async def test_a_job_imports_a_checkpoint_with_progress_and_the_mesh_serves_the_bundle(mesh, long_checkpoint):
    job = await mesh.client.jobs.start_import(long_checkpoint, name="big")
    assert (job.state, job.kind, job.name, job.started_by) == ("queued", "import_model", "big", "local")
    seen = [seen async for seen in mesh.client.jobs.watch(job.id)]
    assert [s.state for s in seen if s.state == "running"], "it was seen at work"
    steps = [s.done_steps for s in seen if s.total_steps]
    assert steps == sorted(steps)
    assert any(0 < done < 24 * STEPS_A_LAYER for done in steps), "its progress was seen"
    done = seen[-1]
    assert (done.state, done.attempt, done.done_steps) == ("done", 1, done.total_steps)
    assert done.created_ms <= done.started_ms <= done.ended_ms
    made = done.imported
    assert made is not None
    assert (made.name, made.path, made.layers, made.experts) == ("big", str(mesh.models / "big"), 24, 768)
    assert len(Bundle(mesh.models / "big").manifest.layers) == 24
    model = await mesh.client.serve_model(made.path, name=made.name)
    assert model.name == "big"


async def test_what_the_importer_says_is_why_a_job_failed(mesh, tmp_path):
    job = await mesh.ended(await mesh.client.jobs.start_import(tmp_path / "nowhere"))
    assert (job.state, job.attempt) == ("failed", 1)
    assert f"{tmp_path / 'nowhere'} is not a folder" in job.error
    assert not (mesh.models / "nowhere").exists()


async def test_jobs_run_one_at_a_time_in_the_order_they_were_started(mesh, long_checkpoint, checkpoint):
    first = await mesh.client.jobs.start_import(long_checkpoint, name="first")
    second = await mesh.client.jobs.start_import(checkpoint, name="second")
    await mesh.until(first, lambda seen: seen.state == "running")
    assert (await mesh.client.jobs.get(second.id)).state == "queued"
    first, second = await mesh.ended(first), await mesh.ended(second)
    assert [first.state, second.state] == ["done", "done"]
    assert second.started_ms >= first.ended_ms
    assert [job.id for job in await mesh.client.jobs.list()] == [first.id, second.id]


async def test_a_name_that_is_taken_or_in_the_making_is_refused(mesh, long_checkpoint, checkpoint):
    job = await mesh.client.jobs.start_import(long_checkpoint, name="one")
    with pytest.raises(FailedPrecondition, match=f"job {job.id} makes 'one' already"):
        await mesh.client.jobs.start_import(checkpoint, name="one")
    await mesh.client.jobs.cancel(job.id)
    (mesh.models / "two").mkdir(parents=True)
    with pytest.raises(FailedPrecondition, match=r"there is a bundle in .*two already"):
        await mesh.client.jobs.start_import(checkpoint, name="two")


@pytest.mark.parametrize(
    ("folder", "options", "words"),
    [
        ("", {}, "folder is missing"),
        ("relative/folder", {}, "must be absolute"),
        ("/x", {"name": "../up"}, "name '../up' is not allowed"),
        ("/x", {"precisions": ("fp32", "fp7")}, "'fp7' is none; allowed are fp32, fp16"),
    ],
)
async def test_what_cannot_be_started_is_refused_at_once(mesh, folder, options, words):
    with pytest.raises(InvalidRequest, match=words):
        await mesh.client.jobs.start_import(folder, **options)
    assert await mesh.client.jobs.list() == ()


async def test_a_job_that_is_not_there_is_not_found(mesh):
    with pytest.raises(NotFound, match="no job has the id 'none'"):
        await mesh.client.jobs.get("none")
    with pytest.raises(NotFound):
        await mesh.client.jobs.cancel("none")
    with pytest.raises(NotFound):
        _ = [job async for job in mesh.client.jobs.watch("none")]


async def test_a_store_in_memory_runs_no_jobs_and_says_what_to_do(tmp_path, served, checkpoint):
    async with small_mesh(tmp_path, [str(served)], workers=0, budget_bytes=1, metrics_listen="off") as client:
        assert job_worker() is None
        with pytest.raises(FailedPrecondition, match=r"--store memory.*start it with --store embedded"):
            await client.jobs.start_import(checkpoint)
        with pytest.raises(FailedPrecondition, match="--store memory"):
            await client.jobs.list()


async def test_with_jobs_off_no_worker_runs_and_nothing_is_started(tmp_path, served, checkpoint):
    async with job_mesh(tmp_path, served, jobs="off") as mesh:
        assert job_worker() is None
        with pytest.raises(FailedPrecondition, match="--jobs off"):
            await mesh.client.jobs.start_import(checkpoint)
        assert await mesh.client.jobs.list() == ()


async def test_the_job_worker_ends_with_its_controller(tmp_path, served):
    async with job_mesh(tmp_path, served):

        async def there() -> bool:
            return job_worker() is not None

        await eventually(there)
    assert job_worker() is None


async def test_a_controller_whose_job_worker_could_not_keep_a_log_serves_and_says_so(tmp_path, served, checkpoint):
    (tmp_path / "data" / "job-worker.log").mkdir(parents=True)
    async with job_mesh(tmp_path, served) as mesh:
        with pytest.raises(FailedPrecondition, match=r"job-worker\.log cannot be written \(Is a directory\)"):
            await mesh.client.jobs.start_import(checkpoint)
        assert len(await mesh.client.served_models()) == 1
