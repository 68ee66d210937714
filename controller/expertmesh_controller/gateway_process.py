"""A gateway process of its own: it answers like the controller's gateway, and hears from the control loop what with."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence

from expertmesh_common.access.following import AccessFollower
from expertmesh_common.clock import SystemClock
from expertmesh_common.observability.tracing import tracing_while
from expertmesh_common.observability.watching import shown
from expertmesh_common.running import run_service
from expertmesh_common.security import Security, dial
from expertmesh_common.serving import Serving
from expertmesh_controller.cluster.remote_bundles import RemoteBundles
from expertmesh_controller.cluster.remote_routes import RemoteRoutes
from expertmesh_controller.gateway.bundle_following import BundleFollower
from expertmesh_controller.gateway.doors import add_services
from expertmesh_controller.gateway.fetching import BundleCache
from expertmesh_controller.gateway.hosting import ModelHost, Surroundings
from expertmesh_controller.gateway_settings import GatewayProcessSettings
from expertmesh_controller.http_door import openai_door
from expertmesh_controller.listening import security_for
from expertmesh_controller.observing import gateway_shows

log = logging.getLogger(__name__)


def run(settings: GatewayProcessSettings) -> None:
    """Be a gateway until SIGTERM or SIGINT.

    Raises:
        MeshError: a setting does not allow it.

    """
    run_service(lambda stop: serve(settings, stop))


async def serve(settings: GatewayProcessSettings, stop: asyncio.Event) -> None:
    """Load what the control loop serves, let callers in, serve until `stop`; answers under way get `drain_s` seconds.

    The control loop may go away and come back meanwhile.

    Raises:
        MeshError: see `run`.

    """
    security, clock = security_for(settings.listen, settings.token, settings.tls), SystemClock()
    access = AccessFollower(security, settings.join, clock)
    async with (
        tracing_while("gateway", settings.gateway_id, os.environ, settings.otlp) as tracing,
        dial(settings.join, security) as channel,
    ):
        routes = RemoteRoutes(channel, settings.gateway_id, clock)
        host = ModelHost(
            Surroundings(
                routes, access.towards_parts, settings.transport, settings.gateway_id, settings.gateway, clock, tracing
            )
        )
        follower = BundleFollower(
            RemoteBundles(channel, settings.gateway_id, clock),
            BundleCache(channel, settings.cache, settings.models),
            host,
            clock,
            slots=settings.slots,
            drain_s=settings.drain_s,
        )
        tasks = [
            asyncio.create_task(access.run(), name="access"),
            asyncio.create_task(follower.run(), name="follow bundles"),
        ]
        try:
            await _until(stop, tasks, follower.loaded)
            if not stop.is_set():
                await _serve(settings, security, host, stop, tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await host.close()
    log.info("gateway stopped")


async def _serve(
    settings: GatewayProcessSettings,
    security: Security,
    host: ModelHost,
    stop: asyncio.Event,
    tasks: Sequence[asyncio.Task[None]],
) -> None:
    """Let callers in."""
    serving, door, started = Serving(security), None, asyncio.Event()
    try:
        async with shown(gateway_shows(host, started), serving, settings.metrics_listen):
            port = await serving.start(settings.listen, add_services(serving.server, host.models, host.answering))
            door = await openai_door(host.answering, security, settings.http_listen, settings.listen, settings.drain_s)
            served = ", ".join(host.models.serving)
            log.info("gateway %s serves %s on %s port=%d", settings.gateway_id, served, settings.listen, port)
            started.set()
            await _until(stop, tasks)
    finally:
        await asyncio.gather(serving.stop(settings.drain_s), *([] if door is None else [door.stop()]))


async def _until(stop: asyncio.Event, tasks: Sequence[asyncio.Task[None]], event: asyncio.Event | None = None) -> None:
    """Wait for the signal or the event; raises what a task ended with. One may have nothing to do and end at once."""
    waiting = [asyncio.create_task(e.wait()) for e in (stop, event) if e is not None]
    try:
        while not any(waiter.done() for waiter in waiting):
            running = [task for task in tasks if not task.done()]
            await asyncio.wait([*waiting, *running], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        for waiter in waiting:
            waiter.cancel()
