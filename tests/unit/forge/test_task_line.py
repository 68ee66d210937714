"""What a running task says and hears, over a real server."""

from __future__ import annotations

import asyncio

import pytest
import redis

from expertmesh_common.jobs.importing import Progress
from expertmesh_common.jobs.wire import CANCELLED_KEY, LOOK_EVERY_S, encode_ids
from expertmesh_common.store_keys import STORE_PREFIX
from expertmesh_controller.control.store.private_server import PrivateServer
from expertmesh_forge.jobs.line import TaskLine, task_line


@pytest.fixture
def server(tmp_path):
    running = PrivateServer(tmp_path / "data")
    asyncio.run(running.start())
    yield running
    asyncio.run(running.stop())


@pytest.fixture
def store(server):
    with redis.from_url(server.url) as client:
        yield client


def test_progress_is_told_a_few_times_a_second_and_always_at_the_end(store):
    said: list[Progress] = []
    now = [0.0]
    line = TaskLine("t", "w", said.append, store, now=lambda: now[0])
    line.begin()
    for done in range(1, 11):
        now[0] += LOOK_EVERY_S / 4
        line.report("import", done, 10)
    assert [(p.worker, p.done) for p in said] == [("w", 0), ("w", 1), ("w", 5), ("w", 9), ("w", 10)]


def test_a_task_hears_that_it_shall_end_once_it_is_listed_and_never_forgets_it(store):
    now = [0.0]
    line = TaskLine("t", "w", lambda _: None, store, now=lambda: now[0])
    assert not line.cancelled()
    store.set(f"{STORE_PREFIX}{CANCELLED_KEY}", encode_ids(("other", "t")))
    assert not line.cancelled(), "it asks a few times a second only"
    now[0] += LOOK_EVERY_S
    assert line.cancelled()
    store.delete(f"{STORE_PREFIX}{CANCELLED_KEY}")
    now[0] += LOOK_EVERY_S
    assert line.cancelled()


def test_a_task_goes_on_without_the_store(server, store):
    def tell(_: Progress) -> None:
        raise redis.ConnectionError("gone")

    with task_line(server.url, "t", "w", tell) as line:
        line.report("import", 1, 1)
        asyncio.run(server.stop())
        assert not line.cancelled()
