"""The worker's disk cache of blobs: fetched from peers or the origin, resumed after cuts, verified before use."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.errors import CorruptData, Exhausted, MeshError, NotHere, Unavailable
from expertmesh_worker.artifacts.partial import Partial
from expertmesh_worker.artifacts.shelf import Shelf, in_use
from expertmesh_worker.artifacts.sources import Sources

log = logging.getLogger(__name__)

MAX_FETCHES = 4  # at once; more only share the same link and disk


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob and the addresses (host:port) that may have it, best first."""

    digest: str
    size_bytes: int
    sources: tuple[str, ...]


class ArtifactCache:
    """Blobs under `root`. Several tasks, and several processes, may fetch into the same folder.

    `limit_bytes` bounds the folder: blobs that were used longest ago make room. None is no limit.
    """

    def __init__(
        self, root: Path, sources: Sources, max_fetches: int = MAX_FETCHES, limit_bytes: int | None = None
    ) -> None:
        self.store = BlobStore(root)
        self._sources = sources
        self._shelf = None if limit_bytes is None else Shelf(self.store.folder, limit_bytes)
        self._making_room = asyncio.Lock()
        self._slots = asyncio.Semaphore(max_fetches)
        self._one_per_digest: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @contextlib.asynccontextmanager
    async def held(self, wanted: Wanted) -> AsyncIterator[Path]:
        """The verified blob's path; the blob cannot leave the cache in the block. See `fetch` for what is raised."""
        with contextlib.ExitStack() as stack:
            while True:
                path = await self.fetch(wanted)
                with contextlib.suppress(FileNotFoundError):  # a sibling made room in between
                    stack.enter_context(in_use(path))
                    break
            yield path

    async def fetch(self, wanted: Wanted) -> Path:
        """The verified blob's path; it comes from disk if it is there and whole.

        Raises:
            Unavailable: no source gave it, or the folder cannot be written; the message names the digest, and the
                folder or what became of every source.
            Exhausted: the disk or the cache is full.

        """
        async with self._one_per_digest[wanted.digest]:
            try:
                found = await asyncio.to_thread(self._on_disk, wanted.digest)
                if found is not None:
                    return found
                async with self._slots:
                    return await self._fetch(wanted)
            except OSError as error:
                raise _not_kept(wanted, self.store.folder, error) from error

    def _on_disk(self, digest: str) -> Path | None:
        """The blob if it is here and right; a corrupt one is removed, for it can only be fetched again."""
        try:
            return self.store.verified(digest)
        except NotHere:
            return None
        except CorruptData as error:
            log.warning("removing a corrupt blob from the cache: %s", error)
            self.store.path(digest).unlink(missing_ok=True)
            return None

    async def _fetch(self, wanted: Wanted) -> Path:
        target = self.store.path(wanted.digest)
        partial = await asyncio.to_thread(Partial, target)  # waits for another process that fetches it
        try:
            found = await asyncio.to_thread(self._on_disk, wanted.digest)
            if found is not None:
                return found
            await self._make_room(wanted, partial)
            return await self._from_any(wanted, partial)
        finally:
            partial.close()

    async def _make_room(self, wanted: Wanted, partial: Partial) -> None:
        if self._shelf is not None:
            async with self._making_room:
                missing_bytes = max(wanted.size_bytes - partial.size_bytes, 0)
                await asyncio.to_thread(self._shelf.make_room, wanted.digest, missing_bytes)

    async def _from_any(self, wanted: Wanted, partial: Partial) -> Path:
        failures: list[str] = []
        for source in wanted.sources:
            try:
                return await self._from_one(source, wanted, partial)
            except (grpc.aio.AioRpcError, MeshError, TimeoutError) as error:
                failures.append(f"{source}: {reason(error)}")
                log.warning("blob %s did not come from %s: %s", wanted.digest[:12], source, reason(error))
        tried = "; ".join(failures) or "no source was named"
        raise Unavailable(f"blob {wanted.digest} of {wanted.size_bytes} bytes could not be fetched ({tried})")

    async def _from_one(self, source: str, wanted: Wanted, partial: Partial) -> Path:
        """Continue from what is here; if the whole then has the wrong digest, try this source alone from the start."""
        resumed = 0 < partial.size_bytes <= wanted.size_bytes
        try:
            return await self._pull(source, wanted, partial, fresh=not resumed)
        except MixedBytes:
            return await self._pull(source, wanted, partial, fresh=True)

    async def _pull(self, source: str, wanted: Wanted, partial: Partial, fresh: bool) -> Path:
        if fresh:
            partial.restart()
        await self._sources.pull(source, wanted.digest, wanted.size_bytes, partial)
        try:
            return await asyncio.to_thread(partial.publish, wanted.digest)
        except CorruptData as error:
            partial.restart()
            if fresh:
                raise
            raise MixedBytes(str(error)) from error


class MixedBytes(CorruptData):
    """Bytes of several sources together have the wrong digest, so it is not known which of them sent wrong ones."""


def _not_kept(wanted: Wanted, folder: Path, error: OSError) -> MeshError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Exhausted(f"no room for blob {wanted.digest} of {wanted.size_bytes} bytes in {folder}")
    return Unavailable(
        f"blob {wanted.digest} cannot be kept in {folder}: {error.strerror}; make the folder writable, or name another "
        "with --cache"
    )


def reason(error: Exception) -> str:
    """What to tell an operator about a source that failed."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name} {error.details()}"
    return str(error) or type(error).__name__
