"""Fetching blobs over real gRPC: resumed after cuts, from the next source, verified."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from expertmesh_api.v1 import blobs_pb2, blobs_pb2_grpc
from expertmesh_common.errors import InvalidInput, Unavailable
from expertmesh_common.security import Security
from expertmesh_worker.artifacts.cache import ArtifactCache, Wanted
from expertmesh_worker.artifacts.partial import Partial
from expertmesh_worker.artifacts.sources import Sources
from rigs.blob_origins import DATA, DIGEST, TOKEN, Counting, Cutting, Silent, Wrong, files, wanted


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


async def test_a_fetch_that_is_given_up_is_continued_by_the_next_one(serve, origin, cache):
    cutting, silent, whole = Cutting(origin, len(DATA) // 2), Silent(origin), Counting(origin)
    addresses = [await serve(service) for service in (cutting, silent, whole)]
    fetching = asyncio.create_task(cache.fetch(wanted(*addresses[:2])))
    async with asyncio.timeout(5):
        await silent.asked.wait()

    fetching.cancel()
    path = await cache.fetch(wanted(addresses[2]))

    assert fetching.cancelled()
    assert path.read_bytes() == DATA
    assert whole.offsets == silent.offsets
    assert whole.offsets[0] >= len(DATA) // 2
    assert files(cache) == [DIGEST]


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
