"""A worker process: runtime, doors and membership, started and ended in order."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from expertmesh.version import __version__
from expertmesh_api.v1 import membership_pb2
from expertmesh_common.access.following import AccessFollower
from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.channel.host import host_id
from expertmesh_common.clock import SystemClock
from expertmesh_common.huge_pages import collapse, place_side_by_side
from expertmesh_common.observability.tracing import Tracing, tracing_while
from expertmesh_common.observability.watching import shown
from expertmesh_common.running import run_service
from expertmesh_common.security import Security, TlsFiles
from expertmesh_common.usable_cores import usable_cores
from expertmesh_worker.agent.joining import Membership
from expertmesh_worker.agent.orders import Orders, Terms
from expertmesh_worker.agent.session import Reports
from expertmesh_worker.agent.settling import Settling
from expertmesh_worker.artifacts.cache import ArtifactCache
from expertmesh_worker.artifacts.partial import remove_stale_partials
from expertmesh_worker.artifacts.shelf import default_limit_bytes
from expertmesh_worker.artifacts.sources import Sources
from expertmesh_worker.channel.experts_service import Identity
from expertmesh_worker.hardware import measure_speed, memory
from expertmesh_worker.observing import Parts, TracedHost, shows
from expertmesh_worker.providers import Provider, provider
from expertmesh_worker.reporting import Reporter
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import Residents
from expertmesh_worker.serving_experts import Behind, Doors, open_doors
from expertmesh_worker.settings import BUDGET_SHARE, WorkerSettings, advertised_host, listen_address

log = logging.getLogger(__name__)

LOADERS = 2
LOADER_NICENESS = 5


class Worker:
    """The parts of one worker, put together; nothing runs before `serve`."""

    def __init__(self, settings: WorkerSettings, backend: Provider, capabilities: membership_pb2.Capabilities) -> None:
        self._settings = settings
        self._security = Security(None if settings.tls is None else TlsFiles.in_folder(settings.tls), settings.token)
        self._identity = Identity(settings.worker_id, secrets.token_hex(8), host_id())
        lanes = Lanes(settings.threads)
        self._residents = Residents(capabilities.budget_bytes, backend, lanes)
        self._runtime = Runtime(self._residents, lanes)
        self._access = AccessFollower(self._security, settings.join, SystemClock())
        self._sources = Sources(self._security, peers=self._access.towards_parts, origin=settings.join)
        self._cache = ArtifactCache(settings.cache, self._sources, limit_bytes=cache_limit_bytes(settings))
        self._reporter = Reporter(
            settings.worker_id, self._identity.generation, __version__, self._identity.host_id, capabilities,
            self._residents, self._runtime,
        )  # fmt: skip

    async def serve(self, stop: asyncio.Event) -> None:
        """Listen, join, serve until `stop`, then leave and drain.

        Raises:
            MeshError: nothing can listen there, or the controller refused this worker for good.

        """
        async with tracing_while("worker", self._settings.worker_id, os.environ, self._settings.otlp) as tracing:
            await self._serve(stop, tracing)
        work = self._runtime.work
        log.info("worker %s stopped frames=%d rows=%d", self._settings.worker_id, work.frames, work.rows)

    async def _serve(self, stop: asyncio.Event, tracing: Tracing | None) -> None:
        remove_stale_partials(self._cache.store.folder)
        listen = listen_address(self._settings)
        host = self._runtime if tracing is None else TracedHost(self._runtime, tracing, self._settings.worker_id)
        behind = Behind(host, self._runtime.recurring, self._reporter.stat, self._cache.store)
        advertised = advertised_host(self._settings, listen)
        doors = await open_doors(
            behind,
            self._identity,
            self._security,
            listen=listen,
            advertise=advertised,
            stream_port=self._settings.stream_port,
            spin_us=self._settings.spin_us,
        )
        log.info("worker %s listens on %s", self._settings.worker_id, doors.endpoint.address)
        following = asyncio.create_task(self._access.run(), name="access")
        settling = Settling(collapse)
        try:
            with ThreadPoolExecutor(LOADERS, "loader", _yield_to_frames) as loaders:
                terms = Terms()
                orders = Orders(
                    self._residents, self._cache, terms, loaders, origin=self._settings.join, loaded=settling.changed
                )
                membership = self._membership(doors, orders, terms)
                parts = self._parts(membership, orders)
                async with shown(shows(parts), doors.serving, self._settings.metrics_listen):
                    await membership.keep(stop)
        finally:
            settling.close()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await doors.close(self._settings.drain_s)
            await self._sources.close()

    def _parts(self, membership: Membership, orders: Orders) -> Parts:
        settings = self._settings
        return Parts(
            self._residents, self._runtime, self._sources, membership, orders.fetched, self._cache.store.folder,
            settings.join, settings.threads,
        )  # fmt: skip

    def _membership(self, doors: Doors, orders: Orders, terms: Terms) -> Membership:
        reports = Reports(lambda: self._reporter.hello((doors.endpoint,)), self._reporter.heartbeat)
        address, clock = self._settings.join, SystemClock()
        return Membership(address, self._security, reports, orders=orders, terms=terms, clock=clock)


def run(settings: WorkerSettings) -> None:
    """Be a worker until SIGTERM or SIGINT.

    Raises:
        MeshError: a setting is wrong, the provider does not work here, or the controller refused this worker.

    """
    place_side_by_side()  # before anything large is loaded
    backend = provider(settings.provider)
    capabilities = measured(settings, backend)
    log.info("%s", " ".join(str(capabilities).split()))
    worker = Worker(settings, backend, capabilities)
    run_service(worker.serve)


def cache_limit_bytes(settings: WorkerSettings) -> int:
    if settings.cache_limit_bytes is not None:
        return settings.cache_limit_bytes
    return default_limit_bytes(BlobStore(settings.cache).folder)


def measured(settings: WorkerSettings, backend: Provider) -> membership_pb2.Capabilities:
    """What this machine has and does, with what the operator declared instead."""
    here, speed = memory(), measure_speed(backend)
    budget = settings.budget_bytes
    return membership_pb2.Capabilities(
        cores=usable_cores(),
        memory_bytes=here.total_bytes,
        budget_bytes=int(here.free_bytes * BUDGET_SHARE) if budget is None else budget,
        gemv_gb_per_s=speed.gemv_gb_per_s,
        gemm_gflops=speed.gemm_gflops,
        speed_rows_per_s=speed.rows_per_s if settings.declared_speed is None else settings.declared_speed,
        providers=[backend.name],
    )


def _yield_to_frames() -> None:
    """Lower the priority of a loading thread: on a busy core, frames go first. Threads have one each on Linux only."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADER_NICENESS)
