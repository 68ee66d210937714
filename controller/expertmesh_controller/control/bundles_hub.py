"""What gateways in other processes are told to serve, and where its files come from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from expertmesh_common.bundle.blobs import BlobStore, Bundle, file_digest
from expertmesh_common.bundle.manifest import MANIFEST_NAME
from expertmesh_controller.cluster.bundles import LeavingModel, Offer, ServedBundle
from expertmesh_controller.control.catalogue import ServedModel

__all__ = ["BundleBlobs", "BundlesHub", "offered"]


class BundlesHub:
    """`Bundles` over memory: holds the newest offer and wakes whoever watches. Used on one event loop."""

    def __init__(self) -> None:
        self.offer = Offer()
        self.watchers = 0
        self._changed = asyncio.Event()
        self._closed = False

    def publish(self, bundles: Iterable[ServedBundle], leaving: Iterable[LeavingModel] = ()) -> None:
        """Make this the newest offer."""
        self.offer = Offer(tuple(bundles), tuple(leaving))
        self._tell_change()

    def close(self) -> None:
        """Let watchers go: no offer will come."""
        self._closed = True
        self._tell_change()

    async def watch(self) -> AsyncIterator[Offer]:
        self.watchers += 1
        try:
            while not self._closed:
                changed = self._changed
                yield self.offer
                await changed.wait()
        finally:
            self.watchers -= 1

    def _tell_change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class BundleBlobs(BlobStore):
    """The blobs of a bundle, and its manifest under the manifest's own digest."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.blobs.folder.parent)
        self._manifest = bundle.folder / MANIFEST_NAME
        self.manifest_digest = file_digest(self._manifest)

    def path(self, digest: str) -> Path:
        return self._manifest if digest == self.manifest_digest else super().path(digest)


def offered(model: ServedModel) -> ServedBundle:
    """What a gateway is told about a model."""
    manifest = model.bundle.folder / MANIFEST_NAME
    size = manifest.stat().st_size
    return ServedBundle(model.name, model.precision, file_digest(manifest), size, model.numerics, model.local_layers)
