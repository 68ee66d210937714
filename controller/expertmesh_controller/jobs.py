"""Background jobs of a controller: the service, its keeper, and the job worker beside them."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio

from expertmesh_api.v1 import jobs_pb2_grpc
from expertmesh_common.access.guard import Audit
from expertmesh_common.clock import SystemClock
from expertmesh_common.jobs.importing import IMPORT_MODEL
from expertmesh_controller.control.jobs.keeping import JobKeeper
from expertmesh_controller.control.jobs.limits import JobLimits
from expertmesh_controller.control.jobs.service import SERVICE_NAME, JobsService
from expertmesh_controller.control.loop import ControlLoop
from expertmesh_controller.control.store.base import Store
from expertmesh_controller.local.children import Child, ChildSpec
from expertmesh_controller.local.restarts import RestartPolicy
from expertmesh_controller.settings import ControllerSettings, data_folder

if TYPE_CHECKING:
    from expertmesh_controller.control.jobs.tasks import Tasks

log = logging.getLogger(__name__)

NAMES = {"import_model": IMPORT_MODEL}
OFF = (
    "no job worker runs, because this controller was started with --jobs off: start one on the same store with "
    "`expertmesh job-worker --redis URL`, or the controller without --jobs off"
)
IN_MEMORY = (
    "this controller keeps its state in memory (--store memory), and background jobs need one that outlives a process: "
    "start it with --store embedded (the default) or a redis:// URL"
)
NOT_INSTALLED = "background jobs need Celery, which is not installed: pip install 'expertmesh[jobs]'"
LOG = "job-worker.log"
STOP_S = 5.0
LIMITS = JobLimits()
_SECRETS = ("EXPERTMESH_TOKEN", "EXPERTMESH_JOIN_TOKEN")


class Jobs:
    """`add_to` a server, `start` once it serves, `stop` while the store is there."""

    SERVICE = SERVICE_NAME

    def __init__(self, settings: ControllerSettings, store: Store, loop: ControlLoop, audit: Audit) -> None:
        models_folder = settings.models_folder or data_folder(settings) / "models"
        self._name = f"job-worker-{secrets.token_hex(4)}"
        self._on_redis = bool(store.url)
        self._no_worker = OFF
        self._worker: Child | None = None
        self._tasks: Tasks | None = None
        self._keeper: JobKeeper | None = None
        self._running: asyncio.Task[None] | None = None
        if store.url and find_spec("celery") is not None:
            from expertmesh_controller.control.jobs.tasks import Tasks  # noqa: PLC0415 - Celery is slow to load

            self._tasks = Tasks(store.url)
            lead = loop.leadership
            self._keeper = JobKeeper(
                store, self._tasks, loop.keep, lambda: lead.lease, clock=SystemClock(), names=NAMES, limits=LIMITS
            )
            if settings.jobs == "on":
                self._worker = self._beside(store.url, data_folder(settings))
        self._service = JobsService(self._keeper, models_folder.absolute(), audit, self._why_not)

    def add_to(self, server: grpc.aio.Server) -> None:
        jobs_pb2_grpc.add_JobsServicer_to_server(self._service, server)

    async def start(self) -> None:
        """Start the job worker, if there shall be one, and go on with the jobs of the store."""
        if self._worker is not None:
            await self._worker.start()
        if self._keeper is not None:
            self._running = asyncio.create_task(self._keeper.run(), name="jobs")

    async def stop(self) -> None:
        """End the job worker; the job that it was at goes on when a controller starts again."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._keeper is not None:
            self._keeper.close()
        if self._worker is not None and self._worker.started:
            await self._worker.stop(STOP_S)
            if self._keeper is not None:
                await self._keeper.settle(self._name)
        if self._tasks is not None:
            await self._tasks.close()

    def _beside(self, url: str, folder: Path) -> Child | None:
        """The job worker, unless it could not even say what is wrong with it: serving matters more."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOG).open("ab").close()
        except OSError as error:
            self._no_worker = f"no job worker runs: {folder / LOG} cannot be written ({error.strerror}); see --data"
            log.warning("%s", self._no_worker)
            return None
        spec = _worker_spec(self._name, url, folder)
        return Child(spec, SystemClock(), log.warning, lambda: None, RestartPolicy(give_up=1000))

    def _why_not(self) -> str:
        """Why there are no jobs, or no job worker comes by itself; "" if one does."""
        if self._keeper is None:
            return NOT_INSTALLED if self._on_redis else IN_MEMORY
        if self._worker is None:
            return self._no_worker
        if self._worker.started and self._worker.keeper.done():
            return f"the job worker cannot be kept running: {self._worker.last_words()}"
        return ""


def _worker_spec(name: str, url: str, folder: Path) -> ChildSpec:
    """The store's URL may hold a password, and anybody can read arguments: it goes through the environment."""
    kept = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    environment = {**kept, "EXPERTMESH_STORE": url, "PYTHONUNBUFFERED": "1"}
    return ChildSpec("job worker", ("job-worker", "--name", name), environment, folder / LOG)
