"""The gateway of one served model: everything between the door and the experts, put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

import grpc.aio

from expertmesh_common.bundle.blobs import Bundle, file_digest
from expertmesh_common.bundle.manifest import MANIFEST_NAME, Precision
from expertmesh_common.clock import Clock, SystemClock
from expertmesh_controller.cluster.local_layers import cuts_of
from expertmesh_controller.cluster.routes import InstanceRoute, Routes
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.doors import add_services
from expertmesh_controller.gateway.following import Plane, RouteFollower
from expertmesh_controller.gateway.gating.explaining_text import TextExplainer
from expertmesh_controller.gateway.gating.gate import load_gates
from expertmesh_controller.gateway.latencies import Latencies
from expertmesh_controller.gateway.model_answers import ModelAnswers, ServedFacts
from expertmesh_controller.gateway.models import ServedModels
from expertmesh_controller.gateway.observing.spans import DispatchSpans
from expertmesh_controller.gateway.settings import GatewaySettings
from expertmesh_controller.gateway.text.codec import TextCodec
from expertmesh_controller.gateway.trunk.local import LocalTrunk

__all__ = ["Gateway"]

log = logging.getLogger(__name__)


class Gateway:
    """Serves one bundle at one precision under `name`, by default the bundle's own.

    `held` are the layers whose experts its own graphs compute with numerics `fast`, perhaps none; None for `exact`.

    Loading happens in the constructor, which may run in any thread; whoever made the plane closes it.

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
        name: str = "",
        sla_window_s: float = 60.0,
        spans: DispatchSpans | None = None,
        held: frozenset[int] | None = None,
    ) -> None:
        self._held = held
        own, layers = held or frozenset(), bundle.manifest.layers
        self._elsewhere = [layer for layer in layers if layer.experts and layer.index not in own]
        self.name = name or bundle.manifest.name
        self.settings = settings or GatewaySettings()
        self._bundle, self._precision, clock = bundle, precision, clock or SystemClock()
        self._codec = TextCodec(bundle)
        self._plane, self._forward, self.engine = plane, *self._make_engine(plane, clock, spans)
        self._follower = RouteFollower(
            routes, plane if self._elsewhere else None, clock, gateway_id, self.name, rows=self.rows, exact=held is None
        )
        served = self._served()
        self.inference = ModelAnswers(
            self.engine,
            self._codec,
            served,
            clock,
            default_deadline_s=self.settings.default_deadline_s,
            ready=lambda: self.ready,
        )
        self.gates = load_gates(bundle)
        self.explainer = TextExplainer(
            self.engine, self._codec, self.gates, self.holders, clock,
            context_tokens=served.context_tokens, shows_rows=not held,
        )  # fmt: skip
        self.latencies = Latencies(sla_window_s, clock)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Every expert has a live instance at the served precision, as far as this gateway was told."""
        return not self.uncovered

    @property
    def uncovered(self) -> int:
        """Experts without one, apart from those that it holds itself. Any thread may ask."""
        found = {i.at for i in self._instances()}
        return sum((layer.index, e.index) not in found for layer in self._elsewhere for e in layer.experts)

    def rows(self) -> dict[tuple[int, int], int]:
        """(layer, index) -> rows that went through that expert since the start, here or elsewhere. For any thread."""
        picks = self._forward.picks
        return {**self._plane.counters.rows(), **({} if picks is None else picks.rows())}

    def holders(self, layer: int) -> Mapping[int, list[str]]:
        """Expert index -> the workers that hold it now, as far as this gateway was told."""
        found: dict[int, list[str]] = {}
        for instance in self._instances():
            if instance.layer == layer:
                found.setdefault(instance.index, []).append(instance.worker_id)
        return found

    def add_to(self, server: grpc.aio.Server) -> tuple[str, ...]:
        """Serve this model alone through a server that is not started yet; returns the services' full names."""
        models = ServedModels()
        models.add(self)
        return add_services(server, models)

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

    def _make_engine(self, plane: Plane, clock: Clock, spans: DispatchSpans | None) -> tuple[Forward, Engine]:
        settings, manifest = self.settings, self._bundle.manifest
        trunk = LocalTrunk(
            self._bundle,
            self._precision,
            stops=cuts_of(manifest, self._held),
            slots=settings.slots,
            context_tokens=min(settings.context_tokens, manifest.trunk.context_tokens),
            chunk_tokens=settings.prefill_chunk_tokens,
            threads=settings.threads,
        )
        forward = Forward(trunk, spans or plane, manifest.layers, settings.patience_s)
        engine = Engine(trunk, forward, clock, settings.queue_limit, settings.reader_patience_s, spans=spans)
        return forward, engine

    def _served(self) -> ServedFacts:
        manifest = self._bundle.manifest
        return ServedFacts(
            name=self.name,
            family=manifest.family,
            precision=self._precision,
            vocabulary=manifest.trunk.vocabulary,
            context_tokens=min(self.settings.context_tokens, manifest.trunk.context_tokens),
            bundle_digest=file_digest(self._bundle.folder / MANIFEST_NAME),
            numerics="exact" if self._held is None else "fast",
        )

    def _instances(self) -> list[InstanceRoute]:
        wanted = (self.name, self._precision)
        return [i for i in self._follower.table.instances if (i.model, i.precision) == wanted]

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_log_failure)
        self._tasks.append(task)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("task %s ended", task.get_name(), exc_info=task.exception())
