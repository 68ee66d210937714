"""Servers of blobs, and a worker's cache that fetches from them."""

from __future__ import annotations

import pytest

from expertmesh_api.v1 import blobs_pb2_grpc
from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.serving import Serving
from expertmesh_worker.artifacts.cache import ArtifactCache
from expertmesh_worker.artifacts.sources import Sources
from rigs.blob_origins import DATA, TOKEN


@pytest.fixture
async def serve():
    servings = []

    async def start(servicer, security=TOKEN):
        serving = Serving(security)
        blobs_pb2_grpc.add_BlobsServicer_to_server(servicer, serving.server)
        servings.append(serving)
        return f"127.0.0.1:{await serving.start('127.0.0.1:0')}"

    yield start
    for serving in servings:
        await serving.stop(0)


@pytest.fixture
def origin(tmp_path):
    store = BlobStore(tmp_path / "origin")
    store.put(DATA)
    return lambda: (store,)


@pytest.fixture
async def cache(tmp_path):
    sources = Sources(TOKEN, stall_s=0.3)
    yield ArtifactCache(tmp_path / "cache", sources)
    await sources.close()
