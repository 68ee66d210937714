"""A controller and its workers on one event loop, each as its process would run it; for tests without processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from expertmesh import AsyncClient, Unavailable
from expertmesh_api.v1 import membership_pb2
from expertmesh_controller.process import serve
from expertmesh_controller.settings import read_settings
from expertmesh_worker.process import Worker
from expertmesh_worker.providers import provider
from expertmesh_worker.settings import WorkerSettings


@contextlib.asynccontextmanager
async def small_mesh(
    folder: Path, models: Sequence[str], *, workers: int = 2, budget_bytes: int, **settings: object
) -> AsyncIterator[AsyncClient]:
    """A client of a mesh that serves `models` (`PATH` or `NAME=PATH`), once its workers have joined.

    Sockets and caches lie in `folder`.
    """
    address, stop = f"unix:{folder / 'c.sock'}", asyncio.Event()
    flags = {"model": list(models), "listen": address, "store": "memory", "http_listen": "off", **settings}
    tasks = [asyncio.create_task(serve(read_settings(flags, {}, None), stop))]
    async with AsyncClient(address, deadline_s=30) as client:
        try:
            await _answers(client, tasks[0])
            parts = [_worker(folder, address, number, budget_bytes) for number in range(workers)]
            tasks += [asyncio.create_task(part.serve(stop)) for part in parts]
            await eventually(lambda: _joined(client, workers))
            yield client
        finally:
            stop.set()
            await asyncio.gather(*tasks)


def _worker(folder: Path, address: str, number: int, budget_bytes: int) -> Worker:
    settings = WorkerSettings(
        address, f"w{number}", folder / "cache", budget_bytes=budget_bytes, listen="127.0.0.1:0", metrics_listen="off"
    )
    capabilities = membership_pb2.Capabilities(
        cores=1, memory_bytes=2**30, budget_bytes=budget_bytes, speed_rows_per_s=1000.0, providers=["cpu"]
    )
    return Worker(settings, provider("cpu"), capabilities)


async def eventually(holds: Callable[[], Awaitable[bool]], within_s: float = 20) -> None:
    """Wait until something is true that can only be asked for."""
    async with asyncio.timeout(within_s):
        while not await holds():  # noqa: ASYNC110 - seen from outside: nothing signals it
            await asyncio.sleep(0.002)


async def _joined(client: AsyncClient, workers: int) -> bool:
    return len(await client.nodes()) == workers


async def _answers(client: AsyncClient, controller: asyncio.Task[None]) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await client.nodes()
            except Unavailable:
                if controller.done():
                    controller.result()
                await asyncio.sleep(0.05)
            else:
                return
