"""Bundles for a gateway away from the controller: from a folder of this machine, or fetched without the experts."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import grpc.aio

from expertmesh_api.v1 import blobs_pb2, blobs_pb2_grpc
from expertmesh_common.bundle.blobs import BlobStore, Bundle, file_digest
from expertmesh_common.bundle.manifest import MANIFEST_NAME, Blob, Manifest, Numerics, Precision, parse_manifest
from expertmesh_common.errors import CorruptData, InvalidInput, MeshError, NotHere, Unavailable
from expertmesh_controller.cluster.bundles import ServedBundle
from expertmesh_controller.cluster.local_layers import ALL, held_layers
from expertmesh_controller.cluster.models import NUMERICS, PRECISIONS

__all__ = ["BundleCache", "gateway_blobs", "numerics_of", "precision_of"]

log = logging.getLogger(__name__)

TRIES = 3
"""A blob that breaks off is continued this often before the bundle is begun again later."""


class BundleCache:
    """Bundles by the digest of their manifests: `local` folders as they are, others under `root`, fetched once."""

    def __init__(self, channel: grpc.aio.Channel, root: Path, local: Sequence[Path] = ()) -> None:
        self._stub = blobs_pb2_grpc.BlobsStub(channel)
        self._root = root
        self._local = {file_digest(folder / MANIFEST_NAME): folder for folder in _bundles(local)}

    async def bundle(self, wanted: ServedBundle) -> Bundle:
        """The bundle with everything that a gateway needs at the served precision; experts are for workers.

        Raises:
            InvalidInput, CorruptData: the manifest is not one that this version can serve.
            NotHere: the control loop does not have a blob.
            Unavailable: it is away, or the disk takes no more; what came stays for the next try.

        """
        local = self._local.get(wanted.manifest_digest)
        if local is not None:
            return Bundle(local)
        try:
            return await self._fetched(wanted)
        except OSError as error:  # experts of a model that is held whole may well fill a disk
            what = f"the files of {wanted.model} cannot be kept in {self._root}: {error.strerror or error}"
            raise Unavailable(f"{what}; make room there, or name another folder with --cache") from error

    async def _fetched(self, wanted: ServedBundle) -> Bundle:
        folder = self._root / wanted.manifest_digest
        data = await self._manifest(wanted)
        manifest = parse_manifest(data.decode(errors="replace"), f"the manifest of {wanted.model}")
        blobs = tuple(gateway_blobs(manifest, precision_of(wanted), wanted.numerics, wanted.local_layers))
        store = BlobStore(folder / "blobs")
        store.folder.mkdir(parents=True, exist_ok=True)
        for blob in blobs:
            await self._fetch(blob, store)
        await asyncio.to_thread(_write_manifest, data, folder)
        log.info("fetched %s bytes=%d", wanted.model, sum(blob.size_bytes for blob in blobs))
        return Bundle(folder)

    async def _manifest(self, wanted: ServedBundle) -> bytes:
        data = b"".join([part async for part in self._parts(wanted.manifest_digest, 0)])
        if hashlib.sha256(data).hexdigest() != wanted.manifest_digest:
            raise CorruptData(f"the manifest of {wanted.model} is not what its digest says: it changed while served")
        return data

    async def _fetch(self, blob: Blob, store: BlobStore) -> None:
        if await asyncio.to_thread(_whole, store, blob.digest):
            return
        target = store.path(blob.digest)
        partial = target.with_name(f"{blob.digest}.{os.getpid()}.partial")
        try:
            with await asyncio.to_thread(partial.open, "wb") as file:
                await self._pull(blob, file)
            found = await asyncio.to_thread(file_digest, partial)
            if found != blob.digest:
                raise CorruptData(f"blob {blob.digest} came with other bytes: their sha256 is {found}")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    async def _pull(self, blob: Blob, file: BinaryIO) -> None:
        for tries_left in reversed(range(TRIES)):
            try:
                async for part in self._parts(blob.digest, file.tell()):
                    await asyncio.to_thread(file.write, part)
            except Unavailable:
                if not tries_left:
                    raise
            else:
                return

    async def _parts(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        call = self._stub.Fetch(blobs_pb2.FetchRequest(digest=digest, offset=offset))
        try:
            async for message in call:
                yield message.data
        except grpc.aio.AioRpcError as error:
            kind: type[MeshError] = NotHere if error.code() == grpc.StatusCode.NOT_FOUND else Unavailable
            raise kind(f"blob {digest} did not come: {error.code().name} {error.details()}") from error
        finally:
            call.cancel()


def gateway_blobs(
    manifest: Manifest, precision: Precision, numerics: str = "exact", local_layers: str = ALL
) -> Iterator[Blob]:
    """Every blob that a gateway reads: trunk segments, gates, tokenizer and chat template, and the experts it holds.

    Raises:
        InvalidInput: the bundle has no such precision, or no such layers.

    """
    if precision not in manifest.precisions:
        raise InvalidInput(f"model {manifest.name} has no precision {precision}: {', '.join(manifest.precisions)}")
    held = held_layers(manifest, numerics, local_layers)
    for segment in manifest.trunk.segments:
        yield segment.graphs[precision].graph
        yield segment.graphs[precision].weights
    for layer in manifest.layers:
        if layer.gate is not None:
            yield layer.gate.weights
        if layer.index in held:
            yield from (expert.blobs[precision] for expert in layer.experts)
    yield manifest.tokenizer.vocabulary
    if manifest.tokenizer.chat_template is not None:
        yield manifest.tokenizer.chat_template


def precision_of(bundle: ServedBundle) -> Precision:
    """The precision as this version knows it.

    Raises:
        InvalidInput: it does not.

    """
    for precision in PRECISIONS:
        if precision == bundle.precision:
            return precision
    raise InvalidInput(f"model {bundle.model} is served at {bundle.precision!r}, which this gateway does not know")


def numerics_of(bundle: ServedBundle) -> Numerics:
    """The numerics as this version knows it.

    Raises:
        InvalidInput: it does not.

    """
    for numerics in NUMERICS:
        if numerics == bundle.numerics:
            return numerics
    raise InvalidInput(f"model {bundle.model} is served with numerics {bundle.numerics!r}, unknown to this gateway")


def _bundles(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        if not (folder / MANIFEST_NAME).is_file():
            raise NotHere(f"no model bundle in {folder}: {MANIFEST_NAME} is missing")
        yield folder


def _write_manifest(data: bytes, folder: Path) -> None:
    """The very bytes, because their digest names the bundle; last, so that a folder with a manifest is whole."""
    partial = folder / f"{MANIFEST_NAME}.{os.getpid()}.partial"
    partial.write_bytes(data)
    partial.replace(folder / MANIFEST_NAME)


def _whole(store: BlobStore, digest: str) -> bool:
    try:
        store.verified(digest)
    except NotHere:
        return False
    except CorruptData as error:
        log.warning("fetching again: %s", error)
        store.path(digest).unlink(missing_ok=True)
        return False
    return True
