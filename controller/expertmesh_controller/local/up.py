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
from expertmesh_common.clock import SystemClock
from expertmesh_controller.local.local_model import local_models
from expertmesh_controller.local.mesh import LocalMesh, MeshState
from expertmesh_controller.local.plan import UpRequest
from expertmesh_controller.local.showing import loading, summarise

Result = TypeVar("Result")

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def up(request: UpRequest, environment: Mapping[str, str], console: Console, ready_file: Path | None) -> None:
    """Run the mesh until a signal ends it; returns after the last process is gone.

    `ready_file` holds the mesh's state as JSON from the moment it serves, and again after every restart of a process.

    Raises:
        Unavailable: a process cannot be kept running.

    """
    models = local_models(request.bundles, request.precision)
    announcer = _Announcer(ready_file)
    mesh = LocalMesh(request, models, environment, clock=SystemClock(), tell=console.print, changed=announcer.changed)
    async with _until_signal() as ended:
        with announcer, _local_token(request):
            try:
                with loading(console, models, request) as progress:
                    nodes = await _first(mesh.start(progress), ended)
                if nodes is not None:
                    summarise(console, models, request, nodes)
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
    left = contextlib.ExitStack()
    for listen in (request.listen, *request.gateways):
        if request.token is not None and not listen.startswith("unix:"):
            left.enter_context(_LeftToken(int(listen.rpartition(":")[2]), request.token, request.tls))
    return left


class _LeftToken:
    """The token, and where certificates are, for local clients of this user."""

    def __init__(self, port: int, token: str, tls: Path | None) -> None:
        self._port = port
        self._token = token
        self._tls = tls
        self._path: Path | None = None

    def __enter__(self) -> None:
        self._path = leave_token(self._port, self._token, self._tls)

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
