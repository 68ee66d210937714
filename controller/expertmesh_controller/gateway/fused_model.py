"""A model that its gateway holds whole, as one graph: numerics `fast`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Precision
from expertmesh_controller.cluster.routes import RouteTable
from expertmesh_controller.gateway.batching.fused_forward import FusedForward
from expertmesh_controller.gateway.batching.picks import Picks
from expertmesh_controller.gateway.settings import GatewaySettings
from expertmesh_controller.gateway.trunk.executor import Floats
from expertmesh_controller.gateway.trunk.fused import FusedTrunk

__all__ = ["FusedModel", "FusedPlane", "load_fused"]


@dataclass(frozen=True, slots=True)
class FusedModel:
    """What the engine of such a model runs."""

    trunk: FusedTrunk
    forward: FusedForward


def load_fused(bundle: Bundle, precision: Precision, settings: GatewaySettings) -> FusedModel:
    """Load everything, experts included.

    Raises:
        InvalidInput: the model has no fused form, or no such precision.
        NotHere, CorruptData: a blob is missing or not what its digest says.

    """
    trunk = FusedTrunk(
        bundle,
        precision,
        slots=settings.slots,
        context_tokens=min(settings.context_tokens, bundle.manifest.trunk.context_tokens),
        chunk_tokens=settings.prefill_chunk_tokens,
        threads=settings.threads,
    )
    return FusedModel(trunk, FusedForward(trunk, bundle.manifest.layers))


class FusedPlane:
    """The expert plane of such a model: it counts what the graph picked, and has no workers to go to or suspect."""

    def __init__(self, picks: Picks) -> None:
        self.counters = picks
        self.last_active: NDArray[np.int32] = np.zeros(0, np.int32)

    def update(self, table: RouteTable) -> None:
        """Nothing here goes by routes."""

    def take_suspects(self) -> tuple[str, ...]:
        return ()

    def run(self, layer: int, rows: Floats, deadline: float, patience_s: float) -> Floats:  # noqa: ARG002
        """Never called: the graph runs its experts by itself."""
        raise AssertionError(f"layer {layer} of a fused model was dispatched")

    def close(self) -> None:
        """Nothing is open."""
