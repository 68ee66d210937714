"""Several processes on one cache: one downloads, the others use it, whatever becomes of the one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_worker.artifacts.partial import SUFFIX, Partial, remove_stale_partials
from rigs.blob_origins import DATA, DIGEST, Counting, fetching_process, files, half, wanted


async def begun(path):
    """Until another process has written something there."""
    async with asyncio.timeout(30):
        while not path.exists() or path.stat().st_size == 0:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)


async def test_two_processes_on_one_cache_fetch_a_blob_once(serve, origin, tmp_path):
    service = Counting(origin)
    address = await serve(service)

    children = [await fetching_process(tmp_path / "shared", address, stdout=subprocess.PIPE) for _ in range(3)]
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
                    await asyncio.Event().wait()  # and then nothing

    first_half = asyncio.Event()
    service = Slow(origin)
    address = await serve(service)
    child = await fetching_process(cache.store.folder.parent, address)
    await first_half.wait()
    await begun(half(cache))
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
                    await asyncio.Event().wait()  # and then nothing

    service = Stuck(origin)
    address = await serve(service)
    child = await fetching_process(cache.store.folder.parent, address)
    await begun(half(cache))
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
