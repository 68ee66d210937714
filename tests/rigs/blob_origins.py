"""Blob services that behave, cut, lie or say nothing; and the one blob that they are asked for."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys

import grpc
import numpy as np

from expertmesh_api.v1 import blobs_pb2
from expertmesh_common.bundle.blob_service import BlobService
from expertmesh_common.security import Security
from expertmesh_worker.artifacts.cache import Wanted
from expertmesh_worker.artifacts.partial import SUFFIX

DATA = np.random.default_rng(0).bytes(5 * 2**20 + 17)
DIGEST = hashlib.sha256(DATA).hexdigest()
TOKEN = Security(token="secret")


class Counting(BlobService):
    """A whole blob service that remembers what it was asked."""

    def __init__(self, stores):
        super().__init__(stores)
        self.offsets = []

    async def Fetch(self, request, context):
        self.offsets.append(request.offset)
        async for message in super().Fetch(request, context):
            yield message


class Cutting(Counting):
    """Sends so many bytes, then the stream is gone."""

    def __init__(self, stores, after_bytes, code=grpc.StatusCode.UNAVAILABLE):
        super().__init__(stores)
        self.after_bytes = after_bytes
        self.code = code

    async def Fetch(self, request, context):
        sent = 0
        async for message in super().Fetch(request, context):
            yield message
            sent += len(message.data)
            if sent >= self.after_bytes:
                await context.abort(self.code, "cut")


class Wrong(Counting):
    """Another blob of the same size."""

    def __init__(self, data):
        super().__init__(tuple)
        self.data = data

    async def Fetch(self, request, context):
        self.offsets.append(request.offset)
        yield blobs_pb2.FetchResponse(data=self.data[request.offset :], total_bytes=len(self.data))


class Silent(Counting):
    def __init__(self, stores):
        super().__init__(stores)
        self.asked = asyncio.Event()

    async def Fetch(self, request, context):
        self.offsets.append(request.offset)
        self.asked.set()
        await asyncio.Event().wait()
        yield blobs_pb2.FetchResponse()


def wanted(*sources):
    """`DATA`, to be had there."""
    return Wanted(DIGEST, len(DATA), sources)


def files(cache):
    """Names of everything in the cache's folder."""
    return sorted(path.name for path in cache.store.folder.glob("*"))


def half(cache):
    """Where a download of `DATA` into the cache lies until it is whole."""
    return cache.store.path(DIGEST).with_name(DIGEST + SUFFIX)


FETCH = """
import asyncio, sys
from pathlib import Path
from expertmesh_common.security import Security
from expertmesh_worker.artifacts.cache import ArtifactCache, Wanted
from expertmesh_worker.artifacts.sources import Sources

async def main(root, address, digest, size):
    sources = Sources(Security(token="secret"))
    path = await ArtifactCache(Path(root), sources).fetch(Wanted(digest, int(size), (address,)))
    await sources.close()
    print(path)

asyncio.run(main(*sys.argv[1:]))
"""


async def fetching_process(folder, address, **options):
    """Another process that fetches `DATA` from `address` into the cache in `folder`, and prints where it lies."""
    command = [sys.executable, "-c", FETCH, str(folder), address, DIGEST, str(len(DATA))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return await asyncio.create_subprocess_exec(*command, env=environment, **options)
