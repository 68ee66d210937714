"""`Jobs` over gRPC."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from expertmesh_api.v1 import jobs_pb2, jobs_pb2_grpc
from expertmesh_common.access.guard import Audit, AuditedCall
from expertmesh_common.access.identity import current_caller
from expertmesh_common.errors import InvalidInput, Precondition, Unavailable
from expertmesh_common.serving import Context
from expertmesh_controller.control.jobs.keeping import JobKeeper
from expertmesh_controller.control.jobs.messages import job_message
from expertmesh_controller.control.jobs.record import new_job
from expertmesh_controller.control.jobs.starting import import_arguments, require_free

log = logging.getLogger(__name__)

SERVICE_NAME = "expertmesh_api.v1.Jobs"


class JobsService(jobs_pb2_grpc.JobsServicer):
    """`keeper` is None where there can be no jobs; `why_not` says why no job worker comes, "" if one does."""

    def __init__(self, keeper: JobKeeper | None, models_folder: Path, audit: Audit, why_not: Callable[[], str]) -> None:
        self._kept, self._models_folder, self._audit, self._why_not = keeper, models_folder, audit, why_not

    @property
    def _keeper(self) -> JobKeeper:
        if self._kept is None:
            raise Precondition(self._why_not())
        return self._kept

    async def Start(  # noqa: N802 - the name of the call
        self,
        request: jobs_pb2.StartJobRequest,
        context: Context,  # noqa: ARG002
    ) -> jobs_pb2.StartJobResponse:
        """Raises InvalidInput, Precondition for what cannot be started; see `JobKeeper.add` for others."""
        keeper = self._keeper
        if request.WhichOneof("job") != "import_model":
            raise InvalidInput("job is missing: say what to do; this controller knows import_model")
        arguments = import_arguments(request.import_model, self._models_folder)
        require_free(arguments, await keeper.known())
        if (why_not := self._why_not()) and not await keeper.anybody():
            raise Precondition(why_not)
        job = await keeper.add(new_job("import_model", arguments, current_caller().name, keeper.now_ms()))
        await self._note("Jobs/Start", request)
        return jobs_pb2.StartJobResponse(job=job_message(job))

    async def List(  # noqa: N802 - the name of the call
        self,
        request: jobs_pb2.ListJobsRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> jobs_pb2.ListJobsResponse:
        return jobs_pb2.ListJobsResponse(jobs=[job_message(job) for job in (await self._keeper.known()).jobs])

    async def Get(  # noqa: N802 - the name of the call
        self,
        request: jobs_pb2.GetJobRequest,
        context: Context,  # noqa: ARG002
    ) -> jobs_pb2.GetJobResponse:
        return jobs_pb2.GetJobResponse(job=job_message((await self._keeper.known()).of(request.id)))

    async def Watch(  # noqa: N802 - the name of the call
        self,
        request: jobs_pb2.WatchJobRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        keeper, seen = self._keeper, None
        while True:
            changed = keeper.changed  # before the look, so that no change is missed
            job = (await keeper.known()).of(request.id)
            if job != seen:
                seen = job
                yield jobs_pb2.WatchJobResponse(job=job_message(job))
            if job.ended:
                return
            if keeper.closed:
                raise Unavailable("the controller ends; the job goes on when it is back")
            await changed.wait()

    async def Cancel(  # noqa: N802 - the name of the call
        self,
        request: jobs_pb2.CancelJobRequest,
        context: Context,  # noqa: ARG002
    ) -> jobs_pb2.CancelJobResponse:
        job = await self._keeper.cancel(request.id)
        await self._note("Jobs/Cancel", request)
        return jobs_pb2.CancelJobResponse(job=job_message(job))

    async def _note(self, method: str, request: Any) -> None:  # noqa: ANN401 - any message
        """The server audits what needs the scope admin; these need less and change something all the same."""
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        await self._audit(AuditedCall(current_caller(), method, digest, "OK"))
