"""A control loop on a real gRPC server over a tiny bundle, for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import SystemClock
from expertmesh_common.security import Security
from expertmesh_common.serving import Serving
from expertmesh_controller.control.catalogue import ServedModel
from expertmesh_controller.control.loop import ControlLoop
from expertmesh_controller.control.models.hosting import NoGateway
from expertmesh_controller.control.models.keeping import ModelKeeper
from expertmesh_controller.control.models.operations import ModelOperations
from expertmesh_controller.control.settings import ControlSettings
from expertmesh_controller.control.store.base import Store

QUICK = ControlSettings(
    lease_s=0.6, heartbeat_s=0.1, order_timeout_s=0.5, retry_first_s=0.05, tick_s=0.02, gather_s=0.005,
    suspicion_s=0.4, confirm_s=0.1, probation_s=0.0,
    drain_grace_s=0.05, leader_lease_s=0.6, settle_quiet_s=0.1, settle_most_s=1.0, leave_most_s=1.0,
)  # fmt: skip


@dataclass
class ControlPlane:
    loop: ControlLoop
    address: str
    expert_bytes: int
    experts: int

    async def until(self, condition: Callable[[], bool], within_s: float = 5.0) -> None:
        """Wait for a condition on the loop's view; TimeoutError when it never comes true."""

        async def wait() -> None:
            while not condition():
                await self.loop.changed()

        await asyncio.wait_for(wait(), within_s)

    def at_rest(self) -> bool:
        return self.loop.view().at_rest

    def covered(self) -> bool:
        return self.loop.view().plan is not None and self.loop.view().uncovered("") == 0


@contextlib.asynccontextmanager
async def control_plane(
    folder: Path, store: Store, settings: ControlSettings = QUICK, *, listen: str = "127.0.0.1:0", name: str = "tiny",
    **how: str,
) -> AsyncIterator[ControlPlane]:  # fmt: skip
    """`how` the model is served: numerics, local_layers."""
    bundle = Bundle(folder)
    loop = ControlLoop([ServedModel(name, bundle, "fp32", **how)], store, SystemClock(), settings, version="0.1.0")
    serving = Serving(Security())
    keeper = ModelKeeper(loop, NoGateway(), store, SystemClock(), [])
    loop.add_to(serving.server, ModelOperations(keeper))
    port = await serving.start(listen)
    running = asyncio.create_task(loop.run())
    experts = [e for layer in bundle.manifest.layers for e in layer.experts]
    total = bundle.manifest.expert_bytes("fp32")
    try:
        yield ControlPlane(loop, f"127.0.0.1:{port}", total // len(experts), len(experts))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await loop.stop()
        await serving.stop(0.1)
