"""The `Blobs` service over blob folders: every worker serves its cache, the control loop serves its bundles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from expertmesh_api.v1 import blobs_pb2, blobs_pb2_grpc
from expertmesh_common.bundle.blobs import CHUNK_BYTES, BlobStore
from expertmesh_common.errors import InvalidInput, NotHere
from expertmesh_common.serving import Context

SERVICE_NAME = "expertmesh_api.v1.Blobs"


class BlobService(blobs_pb2_grpc.BlobsServicer):
    """Sends bytes as they lie on disk; whoever fetches them checks the digest.

    `stores` is asked at every call, so bundles may come and go.
    """

    def __init__(self, stores: Callable[[], Iterable[BlobStore]]) -> None:
        self._stores = stores

    async def Fetch(  # noqa: N802 - the name in the protocol
        self, request: blobs_pb2.FetchRequest, _context: Context
    ) -> AsyncIterator[blobs_pb2.FetchResponse]:
        """The blob from `request.offset` on; an offset at its end yields one empty message.

        Raises:
            NotHere: no store has it.
            InvalidInput: the digest is not one, or the offset is beyond the end.

        """
        path = self._find(request.digest)
        with await asyncio.to_thread(path.open, "rb") as file:
            total_bytes = file.seek(0, 2)
            if request.offset > total_bytes:
                raise InvalidInput(f"offset {request.offset} is beyond blob {request.digest} of {total_bytes} bytes")
            file.seek(request.offset)
            while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield blobs_pb2.FetchResponse(data=data, total_bytes=total_bytes)
            if request.offset == total_bytes:
                yield blobs_pb2.FetchResponse(total_bytes=total_bytes)

    def _find(self, digest: str) -> Path:
        for store in self._stores():
            path = store.path(digest)
            if path.is_file():
                return path
        raise NotHere(f"blob {digest} is not here")
