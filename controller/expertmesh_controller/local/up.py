"""`expertmesh up`: everything of one machine in one foreground command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from expertmesh.local_access import leave_token
from expertmesh_common.bundle.manifest import read_manifest
from expertmesh_common.clock import SystemClock
from expertmesh_controller.local.mesh import LocalMesh, MeshState
from expertmesh_controller.local.plan import UpRequest, check_precision
from expertmesh_controller.local.showing import loading, summarise

Result = TypeVar("Result")

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def up(request: UpRequest, environment: Mapping[str, str], console: Console, ready_file: Path | None) -> None:
    """Run the mesh until a signal ends it; returns after the last process is gone.

    `ready_file` holds the mesh's state as JSON from the moment it serves, and again after every restart of a process.

    Raises:
        Unavailable: a process cannot be kept running.

    """
    manifest = read_manifest(request.bundle)
    check_precision(manifest, request.precision)
    announcer = _Announcer(ready_file)
    mesh = LocalMesh(request, manifest, environment, clock=SystemClock(), tell=console.print, changed=announcer.changed)
    async with _until_signal() as ended:
        with announcer, _local_token(request):
            try:
                with loading(console, manifest) as progress:
                    nodes = await _first(mesh.start(progress), ended)
                if nodes is not None:
                    summarise(console, manifest, request, nodes)
                    announcer.ready(mesh.state)
                    await _first(mesh.watch(), ended)
            finally:
                console.print("ending")
                await mesh.stop()


@contextlib.asynccontextmanager
async def _until_signal() -> AsyncIterator[asyncio.Event]:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, ended.set)
    try:
        yield ended
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)


async def _first(work: Coroutine[Any, Any, Result], ended: asyncio.Event) -> Result | None:
    """The result of `work`, or None when the end was asked for before."""
    task = asyncio.create_task(work)
    waiter = asyncio.create_task(ended.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        task.cancel()
        waiter.cancel()
        await asyncio.gather(task, waiter, return_exceptions=True)


def _local_token(request: UpRequest) -> contextlib.AbstractContextManager[object]:
    if request.token is None or request.listen.startswith("unix:"):
        return contextlib.nullcontext()
    return _LeftToken(int(request.listen.rpartition(":")[2]), request.token)


class _LeftToken:
    """The token where local clients of this user find it."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._path: Path | None = None

    def __enter__(self) -> None:
        self._path = leave_token(self._port, self._token)

    def __exit__(self, *error: object) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class _Announcer:
    """Keeps the ready file true."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._ready = False

    def ready(self, state: MeshState) -> None:
        self._ready = True
        self.changed(state)

    def changed(self, state: MeshState) -> None:
        if self._path is None or not self._ready:
            return
        partial = self._path.with_name(f"{self._path.name}.partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(state), file, default=str)
        partial.replace(self._path)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
