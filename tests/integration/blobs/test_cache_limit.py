"""A cache of limited size: who leaves it, and who never does."""

from __future__ import annotations

import os
import shutil

import pytest

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.errors import Exhausted
from expertmesh_worker.artifacts.cache import ArtifactCache, Wanted
from expertmesh_worker.artifacts.shelf import default_limit_bytes
from expertmesh_worker.artifacts.sources import Sources
from rigs.blob_origins import DATA, DIGEST, TOKEN, Counting, files, wanted

BLOB_BYTES = 1000


@pytest.fixture
async def small_cache(serve, tmp_path):
    """A cache of three blobs of 1000 bytes, a source of five, and what to ask for them."""
    origin = BlobStore(tmp_path / "origin")
    blobs = [origin.put(bytes([n]) * BLOB_BYTES) for n in range(5)]
    address = await serve(Counting(lambda: (origin,)))
    sources = Sources(TOKEN)
    cache = ArtifactCache(tmp_path / "cache", sources, limit_bytes=3 * BLOB_BYTES)
    yield cache, [Wanted(blob.digest, blob.size_bytes, (address,)) for blob in blobs]
    await sources.close()


def kept(cache, blobs):
    return {n for n, blob in enumerate(blobs) if cache.store.has(blob.digest)}


async def test_what_was_used_longest_ago_makes_room_in_a_full_cache(small_cache):
    cache, blobs = small_cache
    for n, used_at in ((0, 30), (1, 10), (2, 20)):
        path = await cache.fetch(blobs[n])
        os.utime(path, (used_at, used_at))
    await cache.fetch(blobs[3])
    assert kept(cache, blobs) == {0, 2, 3}
    await cache.fetch(blobs[4])
    assert kept(cache, blobs) == {0, 3, 4}
    async with cache.held(blobs[0]):  # using it makes it the newest
        pass
    os.utime(cache.store.path(blobs[3].digest), (1, 1))
    await cache.fetch(blobs[1])
    assert kept(cache, blobs) == {0, 4, 1}


async def test_a_blob_that_is_being_loaded_never_leaves_the_cache(small_cache):
    cache, blobs = small_cache
    async with cache.held(blobs[0]) as path:
        os.utime(path, (1, 1))
        for n in (1, 2, 3):
            await cache.fetch(blobs[n])
        assert 0 in kept(cache, blobs)
        assert len(kept(cache, blobs)) == 3
        async with cache.held(blobs[2]), cache.held(blobs[3]):
            with pytest.raises(Exhausted, match=rf"blob {blobs[4].digest} of 1000 bytes does not fit.*--cache-limit"):
                await cache.fetch(blobs[4])
    assert (await cache.fetch(blobs[4])).is_file()


async def test_a_blob_that_is_larger_than_the_whole_cache_is_refused_with_its_name(small_cache, serve, origin):
    cache, _ = small_cache
    address = await serve(Counting(origin))
    with pytest.raises(Exhausted, match=f"blob {DIGEST} of {len(DATA)} bytes"):
        await cache.fetch(wanted(address))
    assert files(cache) == []


def test_without_a_limit_the_cache_may_take_most_of_the_free_disk(tmp_path):
    folder = tmp_path / "not" / "made" / "yet"
    free = shutil.disk_usage(tmp_path).free
    assert 0.5 * free < default_limit_bytes(folder) < free
