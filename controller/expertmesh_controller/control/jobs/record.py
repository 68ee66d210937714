"""A background job as the store keeps it. Frozen data; times are unix milliseconds, 0 for what has not happened."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, ValidationError

from expertmesh_common.errors import CorruptData, NotHere
from expertmesh_common.jobs.importing import ImportedModel, ImportModel, Progress

JOBS_KEY = "jobs"
ENDED_KEPT = 100


class JobState(StrEnum):
    """SENT: a job worker may take it, and has not said that it did."""

    QUEUED = "queued"
    SENT = "sent"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})
WITH_WORKERS = frozenset({JobState.SENT, JobState.RUNNING, JobState.CANCELLING})


class Job(BaseModel):
    """One job. `task_id` is of the attempt under way; `attempt` counts those that job workers were sent."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    kind: str
    arguments: ImportModel
    started_by: str
    created_ms: int
    state: JobState = JobState.QUEUED
    started_ms: int = 0
    ended_ms: int = 0
    cancelled_ms: int = 0
    attempt: int = 0
    task_id: str = ""
    progress: Progress | None = None
    note: str = ""
    error: str = ""
    result: ImportedModel | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class JobsRecord(BaseModel):
    """Kept under `JOBS_KEY`, the newest job last."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    jobs: tuple[Job, ...] = ()

    @staticmethod
    def decode(data: bytes | None) -> JobsRecord:
        """Raises CorruptData: the bytes are not a record."""
        try:
            return JobsRecord() if data is None else JobsRecord.model_validate_json(data)
        except ValidationError as error:
            raise CorruptData(f"the store's {JOBS_KEY!r} is not a list of jobs: {error.errors()[0]['msg']}") from error

    def encode(self) -> bytes:
        return self.model_dump_json().encode()

    def of(self, job_id: str) -> Job:
        """Raises NotHere: there is no such job."""
        for job in self.jobs:
            if job.id == job_id:
                return job
        raise NotHere(f"no job has the id {job_id[:64]!r}; `expertmesh jobs list` shows them")

    def with_job(self, job: Job) -> JobsRecord:
        """With the job changed, or added; without those that ended longest ago."""
        known = any(old.id == job.id for old in self.jobs)
        jobs = tuple(job if old.id == job.id else old for old in self.jobs) if known else (*self.jobs, job)
        return JobsRecord(jobs=_without_oldest(jobs))

    def next_to_send(self) -> Job | None:
        """The oldest that waits, if none is with a job worker: one at a time."""
        if any(job.state in WITH_WORKERS for job in self.jobs):
            return None
        return next((job for job in self.jobs if job.state is JobState.QUEUED), None)

    def with_workers(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.state in WITH_WORKERS)


def new_job(kind: str, arguments: object, caller: str, now_ms: int) -> Job:
    """A job that waits."""
    return Job.model_validate(
        {"id": uuid.uuid4().hex[:10], "kind": kind, "arguments": arguments, "started_by": caller, "created_ms": now_ms}
    )


def _without_oldest(jobs: Sequence[Job]) -> tuple[Job, ...]:
    ended = sorted((job for job in jobs if job.ended), key=lambda job: job.ended_ms)
    forgotten = {job.id for job in ended[:-ENDED_KEPT]}
    return tuple(job for job in jobs if job.id not in forgotten)
