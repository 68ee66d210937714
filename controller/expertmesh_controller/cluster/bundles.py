"""Which bundles gateways serve: the values that control loop and gateways share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Protocol

from expertmesh_api.v1 import routes_pb2

__all__ = ["Bundles", "ServedBundle", "to_list"]


@dataclass(frozen=True, slots=True, order=True)
class ServedBundle:
    """A bundle that is served as `model`. Its manifest can be fetched by its sha256 like any blob of the bundle."""

    model: str
    precision: str
    manifest_digest: str
    manifest_bytes: int

    def to_proto(self) -> routes_pb2.ServedBundle:
        return routes_pb2.ServedBundle(
            model=self.model,
            precision=self.precision,
            manifest_digest=self.manifest_digest,
            manifest_bytes=self.manifest_bytes,
        )

    @staticmethod
    def from_proto(message: routes_pb2.ServedBundle) -> ServedBundle:
        return ServedBundle(message.model, message.precision, message.manifest_digest, message.manifest_bytes)


def to_list(bundles: Iterable[ServedBundle]) -> routes_pb2.BundleList:
    return routes_pb2.BundleList(bundles=[bundle.to_proto() for bundle in bundles])


class Bundles(Protocol):
    """Where a gateway hears what to serve."""

    def watch(self) -> AsyncIterator[tuple[ServedBundle, ...]]:
        """All of them now, and again after every change."""
        ...
