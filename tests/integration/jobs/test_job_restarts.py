"""Jobs through restarts of the controller: they stay listed, are watched on, and go on."""

from __future__ import annotations

from rigs.job_mesh import gone, job_mesh

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
STEPS_A_LAYER = 33


async def test_a_controller_that_ends_in_order_leaves_its_jobs_to_the_next(
    tmp_path, served, long_checkpoint, checkpoint
):
    async with job_mesh(tmp_path, served) as mesh:
        ended = await mesh.ended(await mesh.client.jobs.start_import(checkpoint, name="ended"))
        under_way = await mesh.client.jobs.start_import(long_checkpoint, name="big", precisions=PRECISIONS)
        waiting = await mesh.client.jobs.start_import(checkpoint, name="waiting")
        task = await mesh.held(under_way, 2 * STEPS_A_LAYER)
    await gone(task)
    async with job_mesh(tmp_path, served) as mesh:
        listed = await mesh.client.jobs.list()
        assert [job.id for job in listed] == [ended.id, under_way.id, waiting.id]
        assert listed[0] == ended
        done = await mesh.ended(under_way)
        assert (done.state, done.attempt) == ("done", 1), "an ordered end is nobody's failure"
        assert done.note == "interrupted by a restart of the controller; it goes on"
        assert done.imported is not None
        assert done.imported.resumed_steps >= 2
        assert (await mesh.ended(waiting)).state == "done"
