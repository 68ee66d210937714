"""The gateway: everything between the door and the experts of one served model, put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

import grpc.aio

from expertmesh_api.v1 import gating_pb2, gating_pb2_grpc, inference_pb2, inference_pb2_grpc
from expertmesh_common.bundle.blobs import Bundle, file_digest
from expertmesh_common.bundle.manifest import MANIFEST_NAME, Precision
from expertmesh_common.clock import Clock, SystemClock
from expertmesh_controller.cluster.routes import InstanceRoute, Routes
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.following import Plane, RouteFollower
from expertmesh_controller.gateway.gating.gate import load_gates
from expertmesh_controller.gateway.gating.service import GatingService
from expertmesh_controller.gateway.service import InferenceService, ServedFacts
from expertmesh_controller.gateway.settings import GatewaySettings
from expertmesh_controller.gateway.text.codec import TextCodec
from expertmesh_controller.gateway.trunk.local import LocalTrunk

__all__ = ["Gateway"]

log = logging.getLogger(__name__)


class Gateway:
    """Serves one bundle at one precision. Loading happens in the constructor; whoever made the plane closes it.

    Raises:
        InvalidInput: the bundle lacks the precision, or the settings ask for more context than it has.
        NotHere, CorruptData: a blob is missing or not what its digest says.

    """

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision,
        routes: Routes,
        plane: Plane,
        settings: GatewaySettings | None = None,
        *,
        clock: Clock | None = None,
        gateway_id: str = "gateway",
    ) -> None:
        self.settings = settings or GatewaySettings()
        self._bundle, self._precision, clock = bundle, precision, clock or SystemClock()
        self._codec = TextCodec(bundle)
        self.engine = self._make_engine(plane, clock)
        self._follower = RouteFollower(routes, plane, clock, gateway_id, bundle.manifest.name)
        self.inference = InferenceService(
            self.engine,
            self._codec,
            self._served(),
            clock,
            default_deadline_s=self.settings.default_deadline_s,
            ready=lambda: self.ready,
        )
        self.gating = GatingService({bundle.manifest.name: load_gates(bundle)}, self._holders)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Every expert has a live instance at the served precision, as far as this gateway was told."""
        held = {i.at for i in self._instances()}
        return all((layer.index, e.index) in held for layer in self._bundle.manifest.layers for e in layer.experts)

    def add_to(self, server: grpc.aio.Server) -> tuple[str, ...]:
        """Add the services to a server that is not started yet; returns their full names."""
        inference_pb2_grpc.add_InferenceServicer_to_server(self.inference, server)
        gating_pb2_grpc.add_GatingServicer_to_server(self.gating, server)
        files = (inference_pb2.DESCRIPTOR, gating_pb2.DESCRIPTOR)
        return tuple(service.full_name for file in files for service in file.services_by_name.values())

    async def start(self) -> None:
        """Start answering, watching routes and reporting load."""
        self.engine.start()
        self._run(self._follower.follow(), "follow routes")
        self._run(self._follower.report(self.engine.tally, self.settings.report_interval_s), "report load")

    async def stop(self) -> None:
        """Stop; answers under way fail with Unavailable. Drain the server first."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.engine.stop()

    def _make_engine(self, plane: Plane, clock: Clock) -> Engine:
        settings, manifest = self.settings, self._bundle.manifest
        trunk = LocalTrunk(
            self._bundle,
            self._precision,
            slots=settings.slots,
            context_tokens=min(settings.context_tokens, manifest.trunk.context_tokens),
            chunk_tokens=settings.prefill_chunk_tokens,
            threads=settings.threads,
        )
        forward = Forward(trunk, plane, manifest.layers, clock, settings.patience_s)
        return Engine(trunk, forward, clock, settings.queue_limit)

    def _served(self) -> ServedFacts:
        manifest = self._bundle.manifest
        return ServedFacts(
            name=manifest.name,
            family=manifest.family,
            precision=self._precision,
            vocabulary=manifest.trunk.vocabulary,
            context_tokens=min(self.settings.context_tokens, manifest.trunk.context_tokens),
            bundle_digest=file_digest(self._bundle.folder / MANIFEST_NAME),
        )

    def _instances(self) -> list[InstanceRoute]:
        wanted = (self._bundle.manifest.name, self._precision)
        return [i for i in self._follower.table.instances if (i.model, i.precision) == wanted]

    def _holders(self, model: str, layer: int) -> Mapping[int, list[str]]:
        found: dict[int, list[str]] = {}
        for instance in self._follower.table.instances:
            if (instance.model, instance.layer) == (model, layer):
                found.setdefault(instance.index, []).append(instance.worker_id)
        return found

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_log_failure)
        self._tasks.append(task)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("task %s ended", task.get_name(), exc_info=task.exception())
