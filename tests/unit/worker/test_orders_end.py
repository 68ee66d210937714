"""An order that is ended leaves nothing behind that happens later."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from expertmesh_api.v1 import common_pb2, membership_pb2
from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_worker.agent.orders import Orders, Terms

TURNS = 20  # of the event loop: more than any step here takes


class SlowResidents:
    """Unloads that wait for a gate, one thread at a time."""

    used_bytes = 0

    def __init__(self) -> None:
        self.asked, self.gate = threading.Event(), threading.Event()
        self.unloaded: list[int] = []

    def unload(self, name, precision):
        self.asked.set()
        assert self.gate.wait(20)
        self.unloaded.append(name.index)


class NoCache:
    def __init__(self, folder):
        self.store = BlobStore(folder)


@pytest.fixture
def residents():
    return SlowResidents()


@pytest.fixture
def orders(residents, tmp_path):
    with ThreadPoolExecutor(1) as loaders:
        yield Orders(residents, NoCache(tmp_path), Terms(), loaders, origin="nowhere:1")
        residents.gate.set()


def unload(index):
    expert = common_pb2.ExpertRef(model="m", layer=0, index=index)
    return membership_pb2.Order(order_id=index, unload=membership_pb2.Unload(expert=expert, precision="fp32"))


async def turns():
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def test_an_order_that_is_ended_waits_for_what_a_thread_has_begun(orders, residents):
    order = asyncio.create_task(orders.carry_out(unload(0)))
    await asyncio.to_thread(residents.asked.wait, 20)

    order.cancel()
    await turns()
    assert not order.done()
    residents.gate.set()
    await asyncio.wait((order,), timeout=20)

    assert order.cancelled()
    assert residents.unloaded == [0]


async def test_an_order_that_is_ended_before_a_thread_began_it_never_happens(orders, residents):
    first = asyncio.create_task(orders.carry_out(unload(0)))
    await asyncio.to_thread(residents.asked.wait, 20)
    second = asyncio.create_task(orders.carry_out(unload(1)))
    await turns()

    second.cancel()
    await asyncio.wait((second,), timeout=20)
    residents.gate.set()

    assert (await first).ok
    assert (await orders.carry_out(unload(2))).ok
    assert residents.unloaded == [0, 2]
