"""Background jobs of a mesh for asyncio; every method means what its sibling in `jobs.Jobs` means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import grpc.aio

from expertmesh import calls
from expertmesh.aio_asking import ask_async
from expertmesh.calls import Call, Request, Response
from expertmesh.endpoints import Endpoints, to_error
from expertmesh.jobs import WATCH_S, Job, job_of, start_import_request
from expertmesh.resuming import ResumePolicy
from expertmesh_api.v1 import jobs_pb2


class AsyncJobs:
    """`Jobs` for asyncio."""

    def __init__(self, endpoints: Endpoints[grpc.aio.Channel], resume: ResumePolicy, deadline_s: float) -> None:
        self._endpoints, self._resume, self._deadline_s = endpoints, resume, deadline_s

    async def start_import(
        self,
        folder: str | Path,
        *,
        name: str = "",
        precisions: Sequence[str] = (),
        context_tokens: int = 0,
        fresh: bool = False,
    ) -> Job:
        """Import a checkpoint folder of the controller's machine as a bundle called `name`."""
        request = start_import_request(folder, name, precisions, context_tokens, fresh=fresh)
        return job_of((await self._ask(calls.START_JOB, request)).job)

    async def list(self) -> tuple[Job, ...]:
        """The jobs, the newest last."""
        return tuple(job_of(job) for job in (await self._ask(calls.LIST_JOBS, jobs_pb2.ListJobsRequest())).jobs)

    async def get(self, job_id: str) -> Job:
        """Raises NotFound: there is no such job."""
        return job_of((await self._ask(calls.GET_JOB, jobs_pb2.GetJobRequest(id=job_id))).job)

    async def watch(self, job_id: str, *, deadline_s: float = WATCH_S) -> AsyncIterator[Job]:
        """The job now, and again after every change, until it has ended; also while a controller restarts."""
        attempts, started = self._endpoints.attempts(self._resume, deadline_s), False
        while True:
            place, remaining_s = attempts.next()
            at = self._endpoints[place]
            replies = calls.bind_watch_job_async(at.channel)(
                jobs_pb2.WatchJobRequest(id=job_id), timeout=remaining_s, metadata=at.carried()
            )
            try:
                async for reply in replies:
                    attempts.worked()
                    started = True
                    yield job_of(reply.job)
            except grpc.RpcError as error:
                wait_s = attempts.failed(to_error(error, at.address), started=started)
            else:
                return
            finally:
                replies.cancel()
            await asyncio.sleep(wait_s)

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to end; what it has finished stays."""
        return job_of((await self._ask(calls.CANCEL_JOB, jobs_pb2.CancelJobRequest(id=job_id))).job)

    async def _ask(self, call: Call[Request, Response], request: Request) -> Response:
        attempts = self._endpoints.attempts(self._resume, self._deadline_s)
        return await ask_async(self._endpoints, attempts, call, request)
