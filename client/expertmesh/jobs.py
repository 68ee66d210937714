"""Background jobs of a mesh: what `client.jobs` does, for threads; `aio_jobs` is the same for asyncio."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc

from expertmesh import calls
from expertmesh.calls import Call, Request, Response
from expertmesh.endpoints import Endpoints, ask, to_error
from expertmesh.errors import InvalidRequest
from expertmesh.resuming import ResumePolicy
from expertmesh_api.v1 import jobs_pb2

JobState = Literal["queued", "running", "cancelling", "done", "failed", "cancelled"]

WATCH_S = 7 * 24 * 3600.0
"""How long a job is watched, unless the caller says otherwise."""

_STATES: dict[str, JobState] = {
    "queued": "queued", "running": "running", "cancelling": "cancelling", "done": "done", "failed": "failed",
    "cancelled": "cancelled",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A bundle that a job has made, in the folder `path` of the controller's machine: `serve_model` takes it."""

    name: str
    path: str
    family: str
    layers: int
    experts: int
    resumed_steps: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """A job and how far it is. Times are unix milliseconds, 0 for what has not happened.

    `done_steps` of `total_steps` are finished in `stage`. `attempt` is 2 when its worker died once; `note` says what
    happened on the way, `error` why it failed. `imported` is there once an import is done.
    """

    id: str
    kind: str
    state: JobState
    folder: str
    name: str
    started_by: str
    created_ms: int
    started_ms: int = 0
    ended_ms: int = 0
    stage: str = ""
    done_steps: int = 0
    total_steps: int = 0
    attempt: int = 0
    note: str = ""
    error: str = ""
    imported: ImportedModel | None = None

    @property
    def ended(self) -> bool:
        return self.state in {"done", "failed", "cancelled"}


class Jobs:
    """Jobs run one at a time, in the order they were started, and go on through restarts of the controller.

    Every method raises FailedPrecondition where the mesh cannot run jobs.
    """

    def __init__(self, endpoints: Endpoints[grpc.Channel], resume: ResumePolicy, deadline_s: float) -> None:
        self._endpoints, self._resume, self._deadline_s = endpoints, resume, deadline_s

    def start_import(
        self,
        folder: str | Path,
        *,
        name: str = "",
        precisions: Sequence[str] = (),
        context_tokens: int = 0,
        fresh: bool = False,
    ) -> Job:
        """Import a checkpoint folder of the controller's machine as a bundle called `name`, by default like the folder.

        An import that was cancelled or failed goes on where it was when it is started again, unless `fresh`.

        Raises:
            InvalidRequest: an argument is not allowed.
            FailedPrecondition: there is a bundle of that name already, or a job that makes one.

        """
        request = start_import_request(folder, name, precisions, context_tokens, fresh=fresh)
        return job_of(self._ask(calls.START_JOB, request).job)

    def list(self) -> tuple[Job, ...]:
        """The jobs, the newest last."""
        return tuple(job_of(job) for job in self._ask(calls.LIST_JOBS, jobs_pb2.ListJobsRequest()).jobs)

    def get(self, job_id: str) -> Job:
        """Raises NotFound: there is no such job."""
        return job_of(self._ask(calls.GET_JOB, jobs_pb2.GetJobRequest(id=job_id)).job)

    def watch(self, job_id: str, *, deadline_s: float = WATCH_S) -> Iterator[Job]:
        """The job now, and again after every change, until it has ended; also while a controller restarts.

        Raises:
            NotFound: there is no such job.

        """
        attempts, started = self._endpoints.attempts(self._resume, deadline_s), False
        while True:
            place, remaining_s = attempts.next()
            at = self._endpoints[place]
            replies = calls.bind_watch_job(at.channel)(
                jobs_pb2.WatchJobRequest(id=job_id), timeout=remaining_s, metadata=at.carried()
            )
            try:
                for reply in replies:
                    attempts.worked()
                    started = True
                    yield job_of(reply.job)
            except grpc.RpcError as error:
                wait_s = attempts.failed(to_error(error, at.address), started=started)
            else:
                return
            finally:
                replies.cancel()
            time.sleep(wait_s)

    def cancel(self, job_id: str) -> Job:
        """Ask a job to end; what it has finished stays, so that starting it again goes on from there.

        Raises:
            NotFound: there is no such job.

        """
        return job_of(self._ask(calls.CANCEL_JOB, jobs_pb2.CancelJobRequest(id=job_id)).job)

    def _ask(self, call: Call[Request, Response], request: Request) -> Response:
        return ask(self._endpoints, self._endpoints.attempts(self._resume, self._deadline_s), call, request)


def start_import_request(
    folder: str | Path, name: str, precisions: Sequence[str], context_tokens: int, *, fresh: bool
) -> jobs_pb2.StartJobRequest:
    """Raises InvalidRequest: a value has no place on the wire."""
    try:
        model = jobs_pb2.ImportModel(
            folder=str(folder), name=name, precisions=precisions, context_tokens=context_tokens, fresh=fresh
        )
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"start_import: {error}") from error
    return jobs_pb2.StartJobRequest(import_model=model)


def job_of(message: jobs_pb2.Job) -> Job:
    return Job(
        id=message.id,
        kind=message.kind,
        state=_STATES.get(message.state, "running"),
        folder=message.import_model.folder,
        name=message.import_model.name,
        started_by=message.started_by,
        created_ms=message.created_unix_ms,
        started_ms=message.started_unix_ms,
        ended_ms=message.ended_unix_ms,
        stage=message.progress.stage,
        done_steps=message.progress.done,
        total_steps=message.progress.total,
        attempt=message.attempt,
        note=message.note,
        error=message.error,
        imported=_imported(message.imported) if message.HasField("imported") else None,
    )


def _imported(message: jobs_pb2.ImportedModel) -> ImportedModel:
    return ImportedModel(
        name=message.name,
        path=message.path,
        family=message.family,
        layers=message.layers,
        experts=message.experts,
        resumed_steps=message.resumed_steps,
        notes=tuple(message.notes),
    )
