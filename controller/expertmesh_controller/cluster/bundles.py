"""Which bundles gateways serve: the values that control loop and gateways share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from expertmesh_api.v1 import routes_pb2
from expertmesh_controller.cluster.local_layers import ALL

_PARTLY = "fast-layers"
"""How `fast` with some layers elsewhere is told: gateways that know no local layers must refuse it, not take all.

Those that know ranges but no `none` refuse that as a wrong range. None takes it for a whole model or for an exact one.
"""

__all__ = ["Bundles", "LeavingModel", "Offer", "ServedBundle"]


@dataclass(frozen=True, slots=True, order=True)
class ServedBundle:
    """A bundle that is served as `model`. Its manifest can be fetched by its sha256 like any blob of the bundle."""

    model: str
    precision: str
    manifest_digest: str
    manifest_bytes: int
    numerics: str = "exact"
    local_layers: str = ALL

    def to_proto(self) -> routes_pb2.ServedBundle:
        return routes_pb2.ServedBundle(
            model=self.model,
            precision=self.precision,
            manifest_digest=self.manifest_digest,
            manifest_bytes=self.manifest_bytes,
            numerics=_PARTLY if self.local_layers != ALL else self.numerics,
            local_layers=self.local_layers,
        )

    @staticmethod
    def from_proto(message: routes_pb2.ServedBundle) -> ServedBundle:
        size = message.manifest_bytes
        numerics = "fast" if message.numerics == _PARTLY else message.numerics or "exact"
        digest, local = message.manifest_digest, message.local_layers
        return ServedBundle(message.model, message.precision, digest, size, numerics, local)


@dataclass(frozen=True, slots=True, order=True)
class LeavingModel:
    """A model that is being taken away: answers that run may go on for `drain_s` seconds."""

    model: str
    drain_s: float


@dataclass(frozen=True, slots=True)
class Offer:
    """What gateways serve, and how those models end that they serve no more."""

    bundles: tuple[ServedBundle, ...] = ()
    leaving: tuple[LeavingModel, ...] = ()

    def to_proto(self) -> routes_pb2.BundleList:
        leaving = [routes_pb2.LeavingModel(model=m.model, drain_ms=round(1000 * m.drain_s)) for m in self.leaving]
        return routes_pb2.BundleList(bundles=[bundle.to_proto() for bundle in self.bundles], leaving=leaving)

    @staticmethod
    def from_proto(message: routes_pb2.BundleList) -> Offer:
        return Offer(
            tuple(ServedBundle.from_proto(bundle) for bundle in message.bundles),
            tuple(LeavingModel(leaving.model, leaving.drain_ms / 1000) for leaving in message.leaving),
        )


class Bundles(Protocol):
    """Where a gateway hears what to serve."""

    def watch(self) -> AsyncIterator[Offer]:
        """What is offered now, and again after every change."""
        ...
