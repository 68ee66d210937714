"""Loading, serving and ending the models of one gateway process, without disturbing those that run."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import Clock, SystemClock
from expertmesh_common.daemon_threads import in_daemon_thread
from expertmesh_common.huge_pages import collapse
from expertmesh_common.observability.tracing import Tracing
from expertmesh_common.security import Security
from expertmesh_controller.cluster.local_layers import held_layers
from expertmesh_controller.cluster.models import ModelSpec
from expertmesh_controller.cluster.routes import Routes
from expertmesh_controller.gateway.dispatch.links.opening import Caller, Transport
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gateway import Gateway
from expertmesh_controller.gateway.gating.gate import load_gates
from expertmesh_controller.gateway.latencies import Seen
from expertmesh_controller.gateway.models import ServedModels
from expertmesh_controller.gateway.observing.answers import ObservedAnswering
from expertmesh_controller.gateway.observing.spans import DispatchSpans
from expertmesh_controller.gateway.settings import GatewaySettings

__all__ = ["LoadedModel", "ModelHost", "Surroundings"]

log = logging.getLogger(__name__)

LAST_WORDS_S = 2.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every model of a gateway process shares."""

    routes: Routes
    security: Security = field(default_factory=Security)
    transport: Transport = "auto"
    gateway_id: str = "gateway"
    settings: GatewaySettings = field(default_factory=GatewaySettings)
    clock: Clock = field(default_factory=SystemClock)
    tracing: Tracing | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, not serving yet. Whoever has it starts it or closes it."""

    gateway: Gateway
    plane: ExpertPlane
    pool: LinkPool

    async def close(self) -> None:
        """End its threads and links; memory goes with the last reference."""
        await self.gateway.stop()
        await asyncio.to_thread(self.plane.close)


class ModelHost:
    """The models of a gateway process: `models` answers for them, and `answering` too, observed: it is for doors.

    Used on one event loop.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self.models = ServedModels()
        self.answering = ObservedAnswering(self.models, self.models.name_of, surroundings.tracing)
        self._with = surroundings
        self._running: dict[str, LoadedModel] = {}

    @property
    def running(self) -> Mapping[str, LoadedModel]:
        """The models as of now; any thread may look."""
        return dict(self._running)

    async def load(self, spec: ModelSpec, bundle: Bundle) -> LoadedModel:
        """Load trunk, tokenizer and gates beside the event loop, and the experts that the gateway holds itself.

        Raises:
            InvalidInput: the bundle lacks the precision, has less context than asked for, or layers that are to be
                held have no fused form.
            NotHere, CorruptData: a blob is missing or not what its digest says.

        """
        loaded = await asyncio.to_thread(_load, spec, bundle, self._with)
        try:
            await in_daemon_thread(collapse)  # a stop does not wait for it: nothing is lost with it
        except BaseException:
            await loaded.close()
            raise
        return loaded

    async def start(self, loaded: LoadedModel) -> None:
        """Let requests in.

        Raises:
            InvalidInput: a model of this name is served.

        """
        self.models.add(loaded.gateway)
        self._running[loaded.gateway.name] = loaded
        await loaded.gateway.start()

    async def end(self, name: str, drain_s: float) -> int:
        """Refuse new requests at once, give running ones `drain_s` seconds, free the memory; returns how many were cut.

        A model that does not run here is ended already.
        """
        loaded = self._running.pop(name, None)
        if loaded is None:
            return 0
        self.models.refuse(name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self.models.idle(name)
        cut = self.models.under_way(name)
        await loaded.close()
        with contextlib.suppress(TimeoutError):  # those that were cut say so to their callers, if these listen
            async with asyncio.timeout(LAST_WORDS_S):
                await self.models.idle(name)
        self.models.remove(name)
        del loaded
        await asyncio.to_thread(_give_memory_back)
        log.info("ended model %s cut_requests=%d", name, cut)
        return cut

    async def close(self) -> None:
        """End every model; answers under way fail with Unavailable. Drain the server first."""
        await asyncio.gather(*(self.end(name, 0) for name in tuple(self._running)))

    def under_way(self, name: str) -> int:
        """Requests for the model that have begun and not ended."""
        return self.models.under_way(name)

    def seen(self, name: str) -> Seen:
        """What the model's users saw over its target's window."""
        loaded = self._running.get(name)
        return Seen() if loaded is None else loaded.gateway.latencies.seen()


def _load(spec: ModelSpec, bundle: Bundle, around: Surroundings) -> LoadedModel:
    manifest = bundle.manifest
    settings = around.settings.model_copy(update={"slots": spec.slots})
    # Every model has links of its own: two engines' frames on one link would wait for each other.
    pool = _links(around)
    plane = ExpertPlane(spec.name, manifest.layers, load_gates(bundle), pool)
    try:
        gateway = Gateway(
            bundle,
            spec.precision,
            around.routes,
            plane,
            settings,
            clock=around.clock,
            gateway_id=f"{around.gateway_id}/{spec.name}",
            name=spec.name,
            sla_window_s=spec.sla.window_s,
            held=held_layers(manifest, spec.numerics, spec.local_layers) if spec.numerics == "fast" else None,
            spans=None if around.tracing is None else DispatchSpans(plane, pool.totals, around.tracing),
        )
    except BaseException:
        plane.close()
        raise
    return LoadedModel(gateway, plane, pool)


def _links(around: Surroundings) -> LinkPool:
    caller = Caller(uuid.uuid4().hex, around.security, around.transport, spin_us=around.settings.spin_us)
    return LinkPool(caller)


def _give_memory_back() -> None:
    """A trunk is hundreds of megabytes in the C heap; cycles of its buffers and freed pages would keep them."""
    gc.collect()
    if _malloc_trim is not None:
        _malloc_trim(0)


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only; other allocators return pages themselves
