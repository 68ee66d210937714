"""Sending tasks to job workers by name, and looking at what became of them: the controller's end of Celery."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import redis.exceptions
from celery import Celery
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError
from pydantic import ValidationError

from expertmesh_common.errors import Unavailable
from expertmesh_common.jobs.importing import ImportedModel, ImportModel, JobCancelled, JobFailed, Progress
from expertmesh_common.jobs.wire import PROGRESS, celery_settings
from expertmesh_controller.control.jobs.advancing import Sight

Answer = TypeVar("Answer")

NAME = "expertmesh-controller"
_LOST = "WorkerLostError"


class Tasks:
    """Over the store at `url`. Celery waits for its server: it does so in one thread of its own.

    Raises:
        InvalidInput: `url` is not one that jobs can use.

    """

    def __init__(self, url: str) -> None:
        # An application that knows the results follows each task that it sends; this one only sends.
        self._sender = _app(url, result_backend=None)
        self._results = _app(url)
        self._thread = ThreadPoolExecutor(1, "celery")

    async def send(self, task_id: str, name: str, arguments: ImportModel) -> None:
        """Put a task into the queue.

        Raises:
            Unavailable: the store is gone.

        """
        words = arguments.model_dump(mode="json")
        await self._ask(lambda: self._sender.send_task(name, args=[words], task_id=task_id, retry=False))

    async def look(self, task_id: str) -> Sight:
        """What is known of a task.

        Raises:
            Unavailable: the store is gone.

        """
        return sight_of(await self._ask(lambda: self._results.backend.get_task_meta(task_id, cache=False)))

    async def terminate(self, task_id: str) -> None:
        """Kill the process that runs a task, on whichever job worker it is.

        Raises:
            Unavailable: the store is gone.

        """
        control = self._sender.control
        await self._ask(lambda: control.revoke(task_id, terminate=True, signal="SIGKILL"))

    async def close(self) -> None:
        """Let go of the connections."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        for app in (self._sender, self._results):
            app.close()
        self._results.backend.client.close()

    async def _ask(self, question: Callable[[], Answer]) -> Answer:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, question)
        except (CeleryError, KombuError, redis.exceptions.RedisError, OSError) as error:
            raise Unavailable(f"the queue of jobs does not answer: {error}") from error


def sight_of(meta: dict[str, Any]) -> Sight:
    """What Celery's results tell about a task. Pure."""
    status, result = meta.get("status"), meta.get("result")
    try:
        if status == PROGRESS:
            return Sight("running", progress=Progress.model_validate(result))
        if status == "SUCCESS":
            return Sight("done", result=ImportedModel.model_validate(result))
    except ValidationError as error:
        return Sight("failed", words=f"its job worker is of another version: {error.errors()[0]['msg']}")
    if status == "REVOKED" or isinstance(result, JobCancelled):
        return Sight("cancelled")
    if status == "FAILURE":
        return _failure(result)
    return Sight("waiting")


def _failure(error: object) -> Sight:
    if isinstance(error, JobFailed):
        return Sight("failed", words=str(error))
    kind = type(error).__name__
    if kind == _LOST:
        return Sight("lost", words=str(error))
    return Sight("failed", words=f"{kind}: {error} (unforeseen; the job worker's log has the details)")


def _app(url: str, **settings: Any) -> Celery:  # noqa: ANN401 - Celery has no types
    app = Celery(NAME, set_as_current=False)
    app.conf.update({**celery_settings(url), **settings})
    return app
