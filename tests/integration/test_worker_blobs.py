"""Fetching blobs over real gRPC: resumed after cuts, from the next source, verified, shared between processes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest

from expertmesh_api.v1 import blobs_pb2, blobs_pb2_grpc
from expertmesh_common.bundle.blob_service import BlobService
from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.errors import Exhausted, InvalidInput, Unavailable
from expertmesh_common.security import Security
from expertmesh_common.serving import Serving
from expertmesh_worker.artifacts.cache import ArtifactCache, Wanted
from expertmesh_worker.artifacts.partial import SUFFIX, Partial, remove_stale_partials
from expertmesh_worker.artifacts.shelf import default_limit_bytes
from expertmesh_worker.artifacts.sources import Sources

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
    async def Fetch(self, request, context):
        self.offsets.append(request.offset)
        await asyncio.Event().wait()
        yield blobs_pb2.FetchResponse()


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


def wanted(*sources):
    return Wanted(DIGEST, len(DATA), sources)


def files(cache):
    return sorted(path.name for path in cache.store.folder.glob("*"))


async def test_a_blob_is_fetched_once_and_then_comes_from_disk(serve, origin, cache):
    service = Counting(origin)
    address = await serve(service)

    paths = await asyncio.gather(*(cache.fetch(wanted(address)) for _ in range(5)))

    assert {path.read_bytes() == DATA for path in paths} == {True}
    assert service.offsets == [0]
    assert files(cache) == [DIGEST]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_a_cut_stream_is_resumed_at_the_next_source(serve, origin, cache, code):
    cutting, whole = Cutting(origin, len(DATA) // 2, code), Counting(origin)
    first, second = await serve(cutting), await serve(whole)

    path = await cache.fetch(wanted(first, second))

    assert path.read_bytes() == DATA
    assert cutting.offsets == [0]
    assert len(DATA) // 2 <= whole.offsets[0] < len(DATA)
    assert len(whole.offsets) == 1


async def test_what_was_fetched_survives_until_a_source_is_back(serve, origin, cache):
    cutting = Cutting(origin, len(DATA) // 2)
    address = await serve(cutting)
    with pytest.raises(Unavailable, match=f"blob {DIGEST} .* could not be fetched .*{address}: UNAVAILABLE cut"):
        await cache.fetch(wanted(address))
    assert not cache.store.has(DIGEST)
    cutting.after_bytes = len(DATA)

    path = await cache.fetch(wanted(address))

    assert path.read_bytes() == DATA
    assert cutting.offsets[1] >= len(DATA) // 2


async def test_a_source_with_wrong_bytes_is_dropped_for_the_next(serve, origin, cache):
    wrong, whole = Wrong(DATA[:-1] + b"?"), Counting(origin)
    addresses = [await serve(wrong), await serve(whole)]

    path = await cache.fetch(wanted(*addresses))

    assert path.read_bytes() == DATA
    assert (wrong.offsets, whole.offsets) == ([0], [0])


async def test_wrong_bytes_never_become_visible_and_leave_nothing(serve, cache):
    address = await serve(Wrong(b"?" * len(DATA)))

    with pytest.raises(Unavailable, match=f"{address}: the bytes have sha256"):
        await cache.fetch(wanted(address))

    assert files(cache) == []


async def test_a_good_source_that_continues_a_bad_one_is_asked_from_the_start(serve, origin, cache):
    partial = Partial(cache.store.path(DIGEST))
    partial.append(b"?" * 1000)
    partial.close()
    whole = Counting(origin)

    path = await cache.fetch(wanted(await serve(whole)))

    assert path.read_bytes() == DATA
    assert whole.offsets == [1000, 0]


async def test_a_blob_of_another_size_is_refused(serve, cache):
    address = await serve(Wrong(DATA + b"?"))

    with pytest.raises(Unavailable, match=f"it holds {len(DATA) + 1} bytes, expected {len(DATA)}"):
        await cache.fetch(wanted(address))


async def test_sources_that_are_gone_or_silent_are_passed_over(serve, origin, cache):
    silent = await serve(Silent(origin))
    nothing = await serve(Counting(tuple))
    whole = await serve(Counting(origin))

    path = await cache.fetch(wanted("127.0.0.1:1", silent, nothing, whole))

    assert path.read_bytes() == DATA


async def test_a_corrupt_blob_on_disk_is_fetched_again(serve, origin, cache):
    address = await serve(Counting(origin))
    path = await cache.fetch(wanted(address))
    path.write_bytes(DATA[:100] + b"?" + DATA[101:])

    again = await cache.fetch(wanted(address))

    assert again.read_bytes() == DATA


async def test_the_token_is_demanded(serve, origin, tmp_path):
    address = await serve(Counting(origin))
    sources = Sources(Security(token="other"))

    with pytest.raises(Unavailable, match="UNAUTHENTICATED"):
        await ArtifactCache(tmp_path / "cache", sources).fetch(wanted(address))

    await sources.close()


async def test_without_a_source_the_error_names_the_digest(cache):
    with pytest.raises(Unavailable, match=f"{DIGEST}.*no source was named"):
        await cache.fetch(wanted())


async def test_a_digest_cannot_leave_the_folder(cache):
    with pytest.raises(InvalidInput, match="is not a lower-case sha256"):
        await cache.fetch(Wanted("../../etc/passwd", 3, ()))


async def test_the_service_refuses_an_offset_beyond_the_end(serve, origin):
    address = await serve(Counting(origin))
    async with grpc.aio.insecure_channel(address) as channel:
        call = blobs_pb2_grpc.BlobsStub(channel).Fetch(
            blobs_pb2.FetchRequest(digest=DIGEST, offset=len(DATA) + 1), metadata=TOKEN.metadata()
        )
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()

    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


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


async def test_two_processes_on_one_cache_fetch_a_blob_once(serve, origin, tmp_path):
    service = Counting(origin)
    address = await serve(service)
    command = [sys.executable, "-c", FETCH, str(tmp_path / "shared"), address, DIGEST, str(len(DATA))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    children = [
        await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=environment) for _ in range(3)
    ]
    found = {(await child.communicate())[0].decode().strip() for child in children}

    assert [child.returncode for child in children] == [0, 0, 0]
    assert found == {str(tmp_path / "shared" / "sha256" / DIGEST)}
    assert BlobStore(tmp_path / "shared").verified(DIGEST)
    assert service.offsets == [0]


async def test_a_fetch_that_was_killed_leaves_a_partial_that_another_process_resumes(serve, origin, cache):
    class Slow(Counting):
        async def Fetch(self, request, context):
            async for message in super().Fetch(request, context):
                yield message
                first_half.set()
                if request.offset == 0:
                    await asyncio.sleep(60)

    first_half = asyncio.Event()
    service = Slow(origin)
    address = await serve(service)
    command = [sys.executable, "-c", FETCH, str(cache.store.folder.parent), address, DIGEST, str(len(DATA))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = await asyncio.create_subprocess_exec(*command, env=environment)
    await first_half.wait()
    partial = cache.store.path(DIGEST).with_name(DIGEST + SUFFIX)
    while not partial.exists() or partial.stat().st_size == 0:  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.01)
    child.kill()
    await child.wait()

    path = await cache.fetch(wanted(address))

    assert path.read_bytes() == DATA
    assert service.offsets[1] > 0


def test_stale_partials_are_removed_unless_someone_writes_them(tmp_path):
    store = BlobStore(tmp_path)
    old, written, young = (store.path(character * 64) for character in "abc")
    held = None
    for target in (old, written, young):
        held = Partial(target)
        held.append(b"half")
        if target is not written:
            held.close()
        else:
            writer = held
    now_s = time.time() + 100
    os.utime(young.with_name(young.name + SUFFIX), (now_s, now_s))

    assert remove_stale_partials(store.folder, older_than_s=50, now_s=now_s) == 1

    assert sorted(path.name[0] for path in store.folder.glob(f"*{SUFFIX}")) == ["b", "c"]
    writer.close()


async def test_a_stopped_process_in_mid_fetch_holds_up_no_sibling(serve, origin, cache):
    class Stuck(Counting):
        async def Fetch(self, request, context):
            async for message in super().Fetch(request, context):
                yield message
                if len(self.offsets) == 1:
                    await asyncio.sleep(60)

    service = Stuck(origin)
    address = await serve(service)
    command = [sys.executable, "-c", FETCH, str(cache.store.folder.parent), address, DIGEST, str(len(DATA))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = await asyncio.create_subprocess_exec(*command, env=environment)
    shared = cache.store.path(DIGEST).with_name(DIGEST + SUFFIX)
    while not shared.exists() or shared.stat().st_size == 0:  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.01)
    child.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(8):
            path = await cache.fetch(wanted(address))
        assert path.read_bytes() == DATA
        assert files(cache) == [DIGEST, DIGEST + SUFFIX]  # what the stopped process holds is left to it
    finally:
        child.kill()
        await child.wait()


def test_a_download_that_goes_on_is_waited_for_however_long_it_takes(tmp_path):
    target = BlobStore(tmp_path).path(DIGEST)
    first, ended = Partial(target), threading.Event()

    def grow() -> None:
        for _ in range(8):
            first.append(b"x" * 10)
            first.size_bytes  # noqa: B018 - asking flushes
            time.sleep(0.1)
        first.restart()
        first.close()
        ended.set()

    writer = threading.Thread(target=grow)
    writer.start()
    second = Partial(target, standstill_s=0.4)
    assert ended.is_set()
    assert second.path == target.with_name(DIGEST + SUFFIX)
    second.close()
    writer.join()


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
