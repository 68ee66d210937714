"""One suite for every store: memory, embedded, and a server that somebody else runs."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import Precondition
from expertmesh_controller.control.store.base import Store
from expertmesh_controller.control.store.embedded_store import EmbeddedStore
from expertmesh_controller.control.store.memory_store import MemoryStore
from expertmesh_controller.control.store.private_server import PrivateServer
from expertmesh_controller.control.store.redis_store import RedisStore

Opener = Callable[[Path], Awaitable[tuple[Store, Callable[[], Awaitable[None]]]]]


async def memory(folder: Path):
    store = MemoryStore(SystemClock())
    return store, store.close


async def embedded(folder: Path):
    store = await EmbeddedStore.open(folder / "data", SystemClock())
    return store, store.close


async def by_url(folder: Path):
    return await _served(PrivateServer(folder / "data"))


async def system_redis(folder: Path):
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server must be installed in CI")
        pytest.skip("redis-server is not installed")
    return await _served(PrivateServer(folder / "data", Path(program)))


async def _served(server: PrivateServer):
    await server.start()
    store = RedisStore(server.url)

    async def close() -> None:
        await store.close()
        await server.stop()

    return store, close


@pytest.fixture(params=[memory, embedded, by_url, system_redis], ids=lambda f: f.__name__)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store, close = await request.param(tmp_path)
    yield store
    await close()


async def test_a_lease_has_one_owner_at_a_time(store: Store) -> None:
    lease = await store.acquire("loop", "a", 10.0)
    assert lease is not None
    assert await store.acquire("loop", "b", 10.0) is None
    assert await store.acquire("other", "b", 10.0) is not None


async def test_renewing_a_lease_keeps_its_term(store: Store) -> None:
    first = await store.acquire("loop", "a", 10.0)
    assert await store.acquire("loop", "a", 10.0) == first


async def test_every_new_holder_gets_a_higher_term(store: Store) -> None:
    first = await store.acquire("loop", "a", 10.0)
    await store.release(first)
    second = await store.acquire("loop", "b", 10.0)
    assert second.term > first.term


async def test_a_lease_ends_by_itself(store: Store) -> None:
    first = await store.acquire("loop", "a", 0.05)
    async with asyncio.timeout(5):
        while (second := await store.acquire("loop", "b", 10.0)) is None:  # noqa: ASYNC110 - no signal says so
            await asyncio.sleep(0.01)
    assert second.term > first.term


async def test_releasing_a_lease_that_went_to_another_does_not_take_it_away(store: Store) -> None:
    first = await store.acquire("loop", "a", 10.0)
    await store.release(first)
    await store.acquire("loop", "b", 10.0)
    await store.release(first)
    assert await store.acquire("loop", "c", 10.0) is None


async def test_terms_grow_beyond_what_the_caller_knows_even_if_the_store_forgot(store: Store) -> None:
    lease = await store.acquire("loop", "a", 10.0, above=41)
    assert lease.term == 42


async def test_values_are_kept_byte_for_byte(store: Store) -> None:
    lease = await store.acquire("loop", "a", 10.0)
    assert await store.get("key") is None
    await store.put(lease, "key", b"\x00\xff old")
    await store.put(lease, "key", b"\x00\xff new")
    assert await store.get("key") == b"\x00\xff new"


async def test_a_list_keeps_its_last_values_in_order(store: Store) -> None:
    lease = await store.acquire("loop", "a", 10.0)
    assert await store.tail("list", 5) == []
    for n in range(5):
        await store.append(lease, "list", b"%d" % n, keep=3)
    assert await store.tail("list", 10) == [b"2", b"3", b"4"]
    assert await store.tail("list", 2) == [b"3", b"4"]


async def test_writes_of_an_old_term_are_refused_and_write_nothing(store: Store) -> None:
    old = await store.acquire("loop", "a", 10.0)
    await store.put(old, "key", b"old")
    await store.release(old)
    await store.acquire("loop", "b", 10.0)
    with pytest.raises(Precondition, match="term"):
        await store.put(old, "key", b"late")
    with pytest.raises(Precondition, match="term"):
        await store.append(old, "list", b"late", keep=3)
    assert await store.get("key") == b"old"
    assert await store.tail("list", 3) == []
