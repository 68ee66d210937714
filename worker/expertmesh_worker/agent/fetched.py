"""Which experts the blobs in the cache are: a blob knows its digest only."""

from __future__ import annotations

from collections.abc import Iterator

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_worker.runtime.residents import ExpertName

__all__ = ["FetchedExperts"]


class FetchedExperts:
    """The experts whose verified blobs this process took from its cache, and that are still there. For any thread."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._digests: dict[tuple[ExpertName, str], str] = {}

    def note(self, name: ExpertName, precision: str, digest: str) -> None:
        """The blob `digest` is in the cache, and it is this expert at this precision."""
        self._digests[name, precision] = digest

    def __iter__(self) -> Iterator[tuple[ExpertName, str]]:
        """(expert, precision); looks at the folder."""
        for key, digest in list(self._digests.items()):
            if self._store.has(digest):
                yield key
