"""A controller process: gateway, control loop and one gRPC server, started and ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator

from expertmesh.version import __version__
from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import InvalidInput
from expertmesh_common.running import run_service
from expertmesh_common.security import Security, TlsFiles
from expertmesh_common.serving import Serving
from expertmesh_controller.control.catalogue import ServedModel
from expertmesh_controller.control.loop import SERVICES, ControlLoop
from expertmesh_controller.control.settings import ControlSettings
from expertmesh_controller.control.store.base import Store
from expertmesh_controller.control.store.opening import open_store
from expertmesh_controller.gateway.dispatch.links.opening import Caller
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gateway import Gateway
from expertmesh_controller.gateway.gating.gate import load_gates
from expertmesh_controller.gateway.settings import GatewaySettings
from expertmesh_controller.local.reaching import is_local_only
from expertmesh_controller.settings import ControllerSettings, data_folder

log = logging.getLogger(__name__)


def run(settings: ControllerSettings) -> None:
    """Be a controller until SIGTERM or SIGINT.

    Raises:
        MeshError: a setting, the bundle or the store does not allow it.

    """
    run_service(lambda stop: serve(settings, stop))


async def serve(settings: ControllerSettings, stop: asyncio.Event) -> None:
    """Serve until `stop`: answers under way get `drain_s` seconds to end.

    Raises:
        MeshError: see `run`; also when the control loop cannot go on.

    """
    security = security_of(settings)
    bundle = Bundle(settings.model)
    async with _store(settings) as store, _plane(settings, bundle, security) as plane:
        loop = _control_loop(settings, bundle, store)
        gateway = Gateway(bundle, settings.precision, loop.routes, plane, _gateway_settings(settings))
        serving = Serving(security)
        loop.add_to(serving.server)
        services = (*gateway.add_to(serving.server), *SERVICES)
        deciding = asyncio.create_task(loop.run(), name="control loop")
        try:
            await gateway.start()
            port = await serving.start(settings.listen, services)
            log.info("serving %s at %s on %s port=%d", bundle.manifest.name, settings.precision, settings.listen, port)
            await _either(stop, deciding)
        finally:
            await _end(serving, loop, gateway, deciding, settings.drain_s)
    log.info("controller stopped")


def security_of(settings: ControllerSettings) -> Security:
    """What callers must present.

    Raises:
        InvalidInput: other machines could connect, and nothing is demanded of them; or a TLS file is missing.

    """
    if settings.token is None and settings.tls is None and not is_local_only(settings.listen):
        raise InvalidInput(
            f"listening on {settings.listen} lets other machines in: demand a token (--token or EXPERTMESH_TOKEN) "
            "or certificates (--tls), or listen on 127.0.0.1"
        )
    return Security(None if settings.tls is None else TlsFiles.in_folder(settings.tls), settings.token)


@contextlib.asynccontextmanager
async def _store(settings: ControllerSettings) -> AsyncIterator[Store]:
    store = await open_store(settings.store, data_folder(settings), SystemClock())
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _plane(settings: ControllerSettings, bundle: Bundle, security: Security) -> AsyncIterator[ExpertPlane]:
    manifest = bundle.manifest
    pool = LinkPool(Caller(uuid.uuid4().hex, security, settings.transport))
    plane = ExpertPlane(manifest.name, manifest.layers, load_gates(bundle), pool)
    try:
        yield plane
    finally:
        await asyncio.to_thread(plane.close)  # joins the links' threads


def _control_loop(settings: ControllerSettings, bundle: Bundle, store: Store) -> ControlLoop:
    model = ServedModel(bundle.manifest.name, bundle, settings.precision)
    control = ControlSettings(expected_workers=settings.expected_workers)
    return ControlLoop([model], store, SystemClock(), control, version=__version__)


def _gateway_settings(settings: ControllerSettings) -> GatewaySettings:
    return GatewaySettings(
        slots=settings.slots,
        context_tokens=settings.context_tokens,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        threads=settings.threads,
    )


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
    serving: Serving, loop: ControlLoop, gateway: Gateway, deciding: asyncio.Task[None], drain_s: float
) -> None:
    """Take no new call, end the workers' streams (they never end by themselves), let answers finish, then stop."""
    draining = asyncio.create_task(serving.stop(drain_s))
    deciding.cancel()
    await asyncio.gather(deciding, return_exceptions=True)
    await loop.stop()
    await draining
    await gateway.stop()
