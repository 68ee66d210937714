"""Jobs as messages of the protocol."""

from __future__ import annotations

from expertmesh_api.v1 import jobs_pb2
from expertmesh_common.jobs.importing import ImportedModel, ImportModel, Progress
from expertmesh_controller.control.jobs.record import Job, JobState


def job_message(job: Job) -> jobs_pb2.Job:
    """The job as callers see it; whether a waiting one is already on its way to a job worker is not their business."""
    waits = job.state in {JobState.QUEUED, JobState.SENT}
    message = jobs_pb2.Job(
        id=job.id,
        kind=job.kind,
        state=JobState.QUEUED.value if waits else job.state.value,
        started_by=job.started_by,
        created_unix_ms=job.created_ms,
        started_unix_ms=0 if waits else job.started_ms,
        ended_unix_ms=job.ended_ms,
        attempt=job.attempt,
        note=job.note,
        error=job.error,
        import_model=_arguments(job.arguments),
    )
    if job.progress is not None:
        message.progress.CopyFrom(_progress(job.progress))
    if job.result is not None:
        message.imported.CopyFrom(_result(job.result))
    return message


def _arguments(arguments: ImportModel) -> jobs_pb2.ImportModel:
    return jobs_pb2.ImportModel(
        folder=arguments.source,
        name=arguments.name,
        precisions=arguments.precisions,
        context_tokens=arguments.context_tokens or 0,
        fresh=arguments.fresh,
    )


def _progress(progress: Progress) -> jobs_pb2.JobProgress:
    return jobs_pb2.JobProgress(stage=progress.stage, done=progress.done, total=progress.total)


def _result(result: ImportedModel) -> jobs_pb2.ImportedModel:
    return jobs_pb2.ImportedModel(
        name=result.name,
        path=result.path,
        family=result.family,
        layers=result.layers,
        experts=result.experts,
        resumed_steps=result.resumed_steps,
        notes=result.notes,
    )
