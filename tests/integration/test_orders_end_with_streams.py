"""What became of a stream's orders is told on that stream or by the next hello, never in answer to another order."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from expertmesh_api.v1 import experts_pb2, experts_pb2_grpc, membership_pb2
from expertmesh_common.bundle.blobs import BlobStore, Bundle
from expertmesh_common.clock import SystemClock
from expertmesh_common.security import Security, dial
from expertmesh_controller.control.store.memory_store import MemoryStore
from expertmesh_controller.local.reaching import free_port
from expertmesh_worker.agent.joining import Membership
from expertmesh_worker.agent.orders import Terms
from expertmesh_worker.agent.session import Reports
from expertmesh_worker.process import Worker
from expertmesh_worker.providers import provider
from expertmesh_worker.settings import WorkerSettings
from models.control_plane import ControlPlane, control_plane
from models.fake_worker import FakeWorker
from models.scripted_control import ScriptedControl
from models.tiny_bundle import make_tiny_bundle

FAST = {"numerics": "fast", "local_layers": "none"}
HELLO_S = 1.0  # what a worker that does not wait for its orders would need by far to be back


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


def plane_of(bundle: Path, **how: str) -> contextlib.AbstractAsyncContextManager[ControlPlane]:
    """A control loop that knows nothing of any other, as a new process would with a new store."""
    return control_plane(bundle, MemoryStore(SystemClock()), **how)


async def test_results_of_orders_of_another_controller_answer_none_of_this_one(bundle: Path) -> None:
    """Workers of before send them."""
    async with plane_of(bundle) as plane:
        before = await FakeWorker(plane.address, "w", 10**7).join()
        await plane.until(plane.at_rest)
        await before.die()
    async with plane_of(bundle) as plane:
        worker = FakeWorker(plane.address, "w", 10**7)
        worker.answering = worker.beating = False
        await worker.join()
        await plane.until(lambda: len(plane.loop.view().cluster.orders) > 0)
        given = plane.loop.view().cluster.orders.keys()

        for order_id in before.order_ids:
            worker.say(result=membership_pb2.OrderResult(order_id=order_id, ok=True))
        worker.say(heartbeat=membership_pb2.Heartbeat(n=1, rows=9))
        await plane.until(lambda: plane.loop.view().cluster.members["w"].rows == 9)

        assert len(before.order_ids) == plane.experts
        assert given <= plane.loop.view().cluster.orders.keys()
        assert plane.loop.view().cluster.members["w"].resident == {}
        await worker.die()


class EndlessOrders:
    """Carries out no order to its end; one that is to end takes a few turns of the loop for it."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.begun = asyncio.Event()

    async def carry_out(self, order: membership_pb2.Order) -> membership_pb2.OrderResult:
        self.running.add(order.order_id)
        self.begun.set()
        try:
            return await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            for _ in range(10):
                await asyncio.sleep(0)
            self.running.remove(order.order_id)
            raise


async def test_a_worker_joins_again_only_when_the_orders_of_the_last_stream_have_ended(tmp_path: Path) -> None:
    orders, at_hello, stop = EndlessOrders(), [], asyncio.Event()

    def hello() -> membership_pb2.Hello:
        at_hello.append(set(orders.running))
        return membership_pb2.Hello(worker_id="w", generation="g")

    control = ScriptedControl(BlobStore(tmp_path), Security())
    await control.start()
    reports = Reports(hello, lambda n: membership_pb2.Heartbeat(n=n))
    membership = Membership(
        control.address, Security(), reports, orders=orders, terms=Terms(), clock=SystemClock()
    )  # fmt: skip
    keeping = asyncio.create_task(membership.keep(stop))
    stream = await control.next_worker()
    stream.down.put_nowait(membership_pb2.ControlMessage(order=control.unload(0, "fp32")))
    async with asyncio.timeout(5):
        await orders.begun.wait()

    stream.down.put_nowait(None)
    await control.next_worker()

    assert at_hello == [set(), set()]
    stop.set()
    await keeping
    await control.stop()


class HeldBack:
    """The cpu provider behind a gate: nothing gets a session before it is opened."""

    def __init__(self) -> None:
        self._backend = provider("cpu")
        self.name, self.binds_host_memory = self._backend.name, self._backend.binds_host_memory
        self.asked, self.gate = threading.Event(), threading.Event()

    def open(self, *graph: object, **how: object) -> object:
        self.asked.set()
        assert self.gate.wait(20)
        return self._backend.open(*graph, **how)


@contextlib.asynccontextmanager
async def real_worker(folder: Path, join: str, budget_bytes: int) -> AsyncIterator[tuple[HeldBack, str]]:
    """A worker in this process, and the address that it listens on."""
    backend, stop, listen = HeldBack(), asyncio.Event(), f"127.0.0.1:{free_port('127.0.0.1')}"
    settings = WorkerSettings(join, "w", folder, budget_bytes=budget_bytes, listen=listen, metrics_listen="off")
    capabilities = membership_pb2.Capabilities(cores=1, budget_bytes=budget_bytes, speed_rows_per_s=1000.0)
    serving = asyncio.create_task(Worker(settings, backend, capabilities).serve(stop))
    try:
        yield backend, listen
    finally:
        backend.gate.set()
        stop.set()
        await serving


async def loaded_at(address: str) -> set[tuple[str, int, int]]:
    """What a worker says of itself, whoever leads it."""
    async with dial(address, Security()) as channel:
        found = await experts_pb2_grpc.ExpertsStub(channel).Stat(experts_pb2.StatRequest(), timeout=10)
    return {(e.expert.model, e.expert.layer, e.expert.index) for e in found.experts}


@pytest.mark.parametrize("name", ["tiny", "other"], ids=["the model is exact now", "another model is served now"])
async def test_a_worker_with_room_for_one_copy_that_loses_its_controller_in_mid_load_serves_the_next_one(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    manifest = Bundle(bundle).manifest
    room = manifest.expert_bytes("fp32") // sum(len(layer.experts) for layer in manifest.layers)
    listen = f"127.0.0.1:{free_port('127.0.0.1')}"
    async with contextlib.AsyncExitStack() as stack:
        async with plane_of(bundle, listen=listen, **FAST):
            backend, address = await stack.enter_async_context(real_worker(tmp_path / "cache", listen, room))
            assert await asyncio.to_thread(backend.asked.wait, 20)
        async with plane_of(bundle, listen=listen, name=name) as plane:
            with contextlib.suppress(TimeoutError):
                await plane.until(lambda: "w" in plane.loop.view().cluster.members, within_s=HELLO_S)
            backend.gate.set()

            # It is at rest too while everything was refused: then nothing is planned.
            await plane.until(lambda: plane.at_rest() and len(plane.loop.routes.table.instances) > 0)

            (instance,) = plane.loop.routes.table.instances
            assert (instance.model, instance.numerics) == (name, "exact")
            assert await loaded_at(address) == {(name, instance.layer, instance.index)}
            await stack.aclose()
