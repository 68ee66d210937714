"""A controller with an embedded store and a real job worker; for tests that start jobs and disturb them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from expertmesh import AsyncClient, Job
from models.small_mesh import eventually, small_mesh


@dataclass(frozen=True)
class JobMesh:
    """A running mesh; its controller is this process, its data lies in `data`."""

    client: AsyncClient
    data: Path

    @property
    def models(self) -> Path:
        return self.data / "models"

    async def until(self, job: Job, holds: Callable[[Job], bool]) -> Job:
        """The job as soon as it is so."""
        async with asyncio.timeout(60):
            async for seen in self.client.jobs.watch(job.id):
                if holds(seen):
                    return seen
        raise AssertionError(f"the job ended first: {seen}")

    async def ended(self, job: Job) -> Job:
        return await self.until(job, lambda seen: seen.ended)

    async def held(self, job: Job, steps: int) -> psutil.Process:
        """The stopped process of a task that has done `steps`; it must not have ended by then."""
        await self.until(job, lambda seen: seen.state == "running" and seen.done_steps >= steps)
        process = await task_process()
        process.send_signal(signal.SIGSTOP)
        assert not (await self.client.jobs.get(job.id)).ended
        return process


@contextlib.asynccontextmanager
async def job_mesh(folder: Path, model: Path, **settings: object) -> AsyncIterator[JobMesh]:
    """Serve `model` without a worker; stores, bundles and sockets lie in `folder`."""
    data = folder / "data"
    given = {"store": "embedded", "data": str(data), "metrics_listen": "off", "drain_s": 0.5, **settings}
    async with small_mesh(folder, [str(model)], workers=0, budget_bytes=1, **given) as client:
        yield JobMesh(client, data)


def job_worker() -> psutil.Process | None:
    """The job worker among this process's children."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "job-worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                return child
    return None


async def task_process() -> psutil.Process:
    """The process in which the job worker runs tasks."""
    found: list[psutil.Process] = []

    async def there() -> bool:
        worker = job_worker()
        found[:] = worker.children() if worker else []
        return bool(found)

    await eventually(there)
    return found[0]


async def gone(process: psutil.Process) -> None:
    """Wait until a process has ended."""

    async def ended() -> bool:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    await eventually(ended)


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
