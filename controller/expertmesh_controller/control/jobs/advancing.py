"""What becomes of a job: from what is seen of its task to its next state. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expertmesh_common.jobs.importing import ImportedModel, Progress
from expertmesh_controller.control.jobs.record import Job, JobState

ATTEMPTS = 2
"""A job whose worker died is tried once more: imports go on where they were."""

SILENT_S = 6.0
"""How long nobody may vouch for a task under way, on a machine that is busy with the task itself."""
BEGIN_S = 30.0
"""A task that nobody began for so long, although a job worker lives, was lost on the way."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the results say about a task. `words` are why it failed or was lost."""

    state: Literal["waiting", "running", "done", "failed", "cancelled", "lost"]
    progress: Progress | None = None
    result: ImportedModel | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class Company:
    """What the beats say: for how many seconds now no worker has vouched for the task, and whether any worker lives."""

    silent_s: float
    anybody: bool


def sent(job: Job, task_id: str, now_ms: int) -> Job:
    """The job with a new attempt on its way."""
    return job.model_copy(
        update={"state": JobState.SENT, "task_id": task_id, "attempt": job.attempt + 1, "started_ms": now_ms}
    )


def not_sent(job: Job, why: str) -> Job:
    """The job whose attempt did not get on its way."""
    return _queued_again(job, job.attempt - 1, why)


def asked_to_end(job: Job, now_ms: int) -> Job:
    """The job after somebody cancelled it: one that no worker has ends at once."""
    if job.ended or job.state is JobState.CANCELLING:
        return job
    if job.state is JobState.QUEUED:
        return _ended(job, JobState.CANCELLED, now_ms)
    return job.model_copy(update={"state": JobState.CANCELLING, "cancelled_ms": now_ms})


def advanced(job: Job, sight: Sight, company: Company, now_ms: int) -> Job:
    """The job after a look at its task; unchanged if there is nothing new."""
    match sight.state:
        case "done":
            whole = job.progress and job.progress.model_copy(update={"done": job.progress.total})
            return _ended(job, JobState.DONE, now_ms, result=sight.result).model_copy(update={"progress": whole})
        case "failed":
            return _ended(job, JobState.FAILED, now_ms, error=sight.words)
        case "cancelled":
            return _ended(job, JobState.CANCELLED, now_ms)
        case "lost":
            return _worker_died(job, sight.words, now_ms)
        case "running":
            return _running(job, sight, company, now_ms)
        case "waiting":
            return _waiting(job, company, now_ms)


def interrupted(job: Job, now_ms: int) -> Job:
    """The job after its controller ended in order, and its worker with it: the next one goes on, nothing is counted."""
    if job.state is JobState.CANCELLING:
        return _ended(job, JobState.CANCELLED, now_ms)
    return _queued_again(job, job.attempt - 1, "interrupted by a restart of the controller; it goes on")


def _running(job: Job, sight: Sight, company: Company, now_ms: int) -> Job:
    if company.silent_s >= SILENT_S:
        return _worker_died(job, "it ended without a word", now_ms)
    news: dict[str, object] = {"progress": sight.progress}
    if job.state is JobState.SENT:
        news |= {"state": JobState.RUNNING, "started_ms": now_ms}
    return job.model_copy(update=news)


def _waiting(job: Job, company: Company, now_ms: int) -> Job:
    if job.state is JobState.CANCELLING:
        return _ended(job, JobState.CANCELLED, now_ms)
    if company.anybody and company.silent_s >= BEGIN_S:
        return _queued_again(job, job.attempt - 1, "no job worker began it; it was sent again")
    return job


def _worker_died(job: Job, words: str, now_ms: int) -> Job:
    if job.state is JobState.CANCELLING:
        return _ended(job, JobState.CANCELLED, now_ms)
    if job.attempt >= ATTEMPTS:
        return _ended(job, JobState.FAILED, now_ms, error=f"its job worker died {job.attempt} times: {words}")
    return _queued_again(job, job.attempt, f"its job worker died ({words}); it goes on where it was")


def _queued_again(job: Job, attempt: int, note: str) -> Job:
    return job.model_copy(update={"state": JobState.QUEUED, "task_id": "", "attempt": max(attempt, 0), "note": note})


def _ended(job: Job, state: JobState, now_ms: int, error: str = "", result: ImportedModel | None = None) -> Job:
    return job.model_copy(update={"state": state, "ended_ms": now_ms, "error": error, "result": result, "task_id": ""})
