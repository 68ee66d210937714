"""A controller process: gateway, control loop and one gRPC server, started and ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from expertmesh.version import __version__
from expertmesh_common.clock import SystemClock
from expertmesh_common.observability.tracing import tracing_while
from expertmesh_common.observability.watching import CONTROLLER_PORT, shown
from expertmesh_common.running import run_service
from expertmesh_common.security import Security
from expertmesh_common.serving import Serving
from expertmesh_controller.cluster.models import ModelSpec
from expertmesh_controller.cluster.routes import Routes
from expertmesh_controller.control.access.control import AccessControl
from expertmesh_controller.control.loop import SERVICES, ControlLoop
from expertmesh_controller.control.models.keeping import ModelKeeper
from expertmesh_controller.control.models.operations import ModelOperations
from expertmesh_controller.control.settings import ControlSettings
from expertmesh_controller.control.store.base import Store
from expertmesh_controller.control.store.opening import open_store
from expertmesh_controller.gateway.doors import add_services
from expertmesh_controller.gateway.hosting import ModelHost, Surroundings
from expertmesh_controller.gateway.settings import GatewaySettings
from expertmesh_controller.http_door import HttpDoor, openai_door
from expertmesh_controller.jobs import Jobs
from expertmesh_controller.listening import security_for
from expertmesh_controller.observing import controller_shows
from expertmesh_controller.settings import ControllerSettings, data_folder

log = logging.getLogger(__name__)


def run(settings: ControllerSettings) -> None:
    """Be a controller until SIGTERM or SIGINT.

    Raises:
        MeshError: a setting, the bundle or the store does not allow it.

    """
    # Children are programs of their own; gRPC need not prepare for forks that go on using it.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    run_service(lambda stop: serve(settings, stop))


async def serve(settings: ControllerSettings, stop: asyncio.Event) -> None:
    """Serve until `stop`: answers under way get `drain_s` seconds to end.

    Raises:
        MeshError: see `run`; also when the control loop cannot go on.

    """
    security = security_for(settings.listen, settings.token, settings.tls)
    async with (
        tracing_while("controller", settings.listen, os.environ, settings.otlp) as tracing,
        _store(settings) as store,
        _access(settings, store, security) as access,
    ):
        loop = _control_loop(settings, store)
        access.lease = lambda: loop.leadership.lease
        host = ModelHost(replace(_surroundings(settings, loop.routes, access.towards_parts), tracing=tracing))
        keeper = ModelKeeper(loop, host, store, SystemClock(), specs_of(settings))
        serving = Serving(security, access.audit.note)
        loop.add_to(serving.server, _operations(keeper, settings))
        access.add_to(serving.server)
        jobs = Jobs(settings, store, loop, access.audit.note)
        jobs.add_to(serving.server)
        services = (*add_services(serving.server, host.models, host.answering), *SERVICES, access.SERVICE, jobs.SERVICE)
        started = asyncio.Event()
        tasks: list[asyncio.Task[None]] = []
        door: HttpDoor | None = None
        shows = controller_shows(loop, host, started)
        try:
            async with shown(shows, serving, settings.metrics_listen, CONTROLLER_PORT):
                await keeper.start()
                tasks.append(asyncio.create_task(loop.run(), name="control loop"))
                tasks.append(asyncio.create_task(keeper.restore(), name="restore models"))
                port = await serving.start(settings.listen, services)
                log.info("serving %s on %s port=%d", ", ".join(host.models.serving), settings.listen, port)
                door = await openai_door(
                    host.answering, security, settings.http_listen, settings.listen, settings.drain_s
                )
                started.set()
                await jobs.start()
                await _either(stop, tasks[0])
        finally:
            try:
                await jobs.stop()
            finally:
                access.close()
                doors = [serving.stop(settings.drain_s), *([] if door is None else [door.stop()])]
                await _end(doors, loop, host, tasks)
    log.info("controller stopped")


@contextlib.asynccontextmanager
async def _store(settings: ControllerSettings) -> AsyncIterator[Store]:
    store = await open_store(settings.store, data_folder(settings), SystemClock())
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _access(settings: ControllerSettings, store: Store, security: Security) -> AsyncIterator[AccessControl]:
    access = AccessControl(store, security, settings.join_token, SystemClock())
    await access.load()
    running = asyncio.create_task(access.run(), name="access control")
    try:
        yield access
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _control_loop(settings: ControllerSettings, store: Store) -> ControlLoop:
    control = ControlSettings(expected_workers=settings.expected_workers)
    return ControlLoop((), store, SystemClock(), control, version=__version__)


def specs_of(settings: ControllerSettings) -> tuple[ModelSpec, ...]:
    """The models that the settings ask for."""
    defaults = (settings.precision, settings.slots, settings.numerics, settings.local_layers)
    return tuple(model.spec(*defaults) for model in settings.models)


def _operations(keeper: ModelKeeper, settings: ControllerSettings) -> ModelOperations:
    return ModelOperations(keeper, settings.precision, settings.slots, settings.numerics, settings.local_layers)


def _surroundings(settings: ControllerSettings, routes: Routes, towards_workers: Security) -> Surroundings:
    gateway = GatewaySettings(
        slots=settings.slots,
        context_tokens=settings.context_tokens,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        threads=settings.threads,
        spin_us=settings.spin_us,
    )
    return Surroundings(routes, towards_workers, settings.transport, settings=gateway)


async def _either(stop: asyncio.Event, deciding: asyncio.Task[None]) -> None:
    """Wait for the signal; a control loop that ended by itself is an error."""
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({waiting, deciding}, return_when=asyncio.FIRST_COMPLETED)
        if deciding.done():
            deciding.result()
    finally:
        waiting.cancel()


async def _end(
    doors: Sequence[Coroutine[Any, Any, None]], loop: ControlLoop, host: ModelHost, tasks: Sequence[asyncio.Task[None]]
) -> None:
    """Take no new call, end workers' and watchers' streams, which never end by themselves, let answers finish, stop."""
    draining = [asyncio.create_task(door) for door in doors]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.stop()
    await asyncio.gather(*draining)
    await host.close()
