"""Metrics of single experts: who waits for them, and where they are."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from expertmesh_api.v1 import common_pb2, membership_pb2
from expertmesh_common.channel.frame import Request, Status, model_key
from expertmesh_common.security import Security
from expertmesh_worker.agent.orders import Orders, Terms
from expertmesh_worker.artifacts.cache import ArtifactCache
from expertmesh_worker.artifacts.sources import Sources
from expertmesh_worker.observing_experts import of_experts
from expertmesh_worker.providers import provider
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import Residents
from models.made_experts import HIDDEN, SMALL, store_expert


class Bench:
    """A worker's experts, orders and cache in this process; blobs 0 and 1 are in the cache."""

    def __init__(self, folder, loaders):
        self.lanes = Lanes(1)
        self.residents = Residents(10**9, provider("cpu"), self.lanes)
        self.runtime = Runtime(self.residents, self.lanes)
        self.cache = ArtifactCache(folder, Sources(Security(), peers=lambda _: Security(), origin="nowhere:1"))
        self.orders = Orders(self.residents, self.cache, Terms(), loaders, origin="nowhere:1")
        self.blobs = [store_expert(folder, SMALL, seed)[1] for seed in range(2)]

    def load_order(self, index):
        spec = membership_pb2.ExpertSpec(
            expert=common_pb2.ExpertRef(model="m", layer=0, index=index), precision="fp32",
            digest=self.blobs[index].digest, blob_bytes=self.blobs[index].size_bytes, hidden=HIDDEN, width=SMALL.width,
        )  # fmt: skip
        return membership_pb2.Order(order_id=1, load=membership_pb2.Load(spec=spec))

    async def load(self, index):
        result = await self.orders.carry_out(self.load_order(index))
        assert (result.ok, result.error) == (True, "")

    async def unload(self, index):
        expert = common_pb2.ExpertRef(model="m", layer=0, index=index)
        order = membership_pb2.Order(order_id=1, unload=membership_pb2.Unload(expert=expert, precision="fp32"))
        assert (await self.orders.carry_out(order)).ok

    def series(self, name):
        """Labels (all but model and layer) to value of one family."""
        found = {f.name: f for f in of_experts(self.residents, self.orders.fetched, self.runtime.waiting_frames)}
        samples = found[f"expertmesh_{name}"].samples
        return {tuple(v for k, v in s.labels.items() if k not in {"model", "layer"}): s.value for s in samples}


@pytest.fixture
def bench(tmp_path):
    with ThreadPoolExecutor(1) as loaders:
        yield Bench(tmp_path, loaders)


def frame(*experts):
    """Row n asks for the n-th of `experts`."""
    count = len(experts)
    return Request(
        seq=1, epoch=(1, 1), model=model_key("m"), layer=0, deadline_ms=20_000,
        tensors={"rows": np.ones((count, HIDDEN), np.float32)}, row=np.arange(count, dtype=np.uint32),
        expert=np.array(experts, np.uint16), weight=np.ones(count, np.float32),
    )  # fmt: skip


async def test_rows_that_wait_for_a_lane_are_counted_for_the_experts_that_they_ask_for(bench):
    for index in (0, 1):
        await bench.load(index)
    assert bench.series("expert_queue_rows") == {("0",): 0, ("1",): 0}
    lane, replies = bench.lanes.take(1.0), []
    waiting = [
        threading.Thread(target=lambda f=f: replies.append(bench.runtime.execute(f)))
        for f in (frame(1, 1, 0), frame(1))
    ]
    for thread in waiting:
        thread.start()
    try:
        until(lambda: bench.runtime.work.queued_frames == 2)
        assert bench.series("expert_queue_rows") == {("0",): 1, ("1",): 3}
    finally:
        bench.lanes.give(lane)
        for thread in waiting:
            thread.join(10)
    assert [reply.status for reply in replies] == [Status.OK, Status.OK]
    assert bench.series("expert_queue_rows") == {("0",): 0, ("1",): 0}


def test_a_frame_whose_time_ran_out_waits_no_more(bench):
    lane = bench.lanes.take(1.0)
    assert bench.runtime.execute(frame(0)._replace(deadline_ms=1)).status is Status.DEADLINE
    assert (bench.runtime.work.queued_frames, bench.runtime.waiting_frames) == (0, [])
    bench.lanes.give(lane)


async def test_an_expert_is_hot_while_it_is_loaded_and_warm_while_only_its_blob_is_here(bench):
    assert bench.series("expert_tier") == {}
    await bench.load(0)
    await bench.load(1)
    assert bench.series("expert_tier") == {("0", "fp32", "hot"): 1, ("1", "fp32", "hot"): 1}
    await bench.unload(1)
    assert bench.series("expert_tier") == {("0", "fp32", "hot"): 1, ("1", "fp32", "warm"): 1}
    assert bench.series("instance_rows").keys() == {("0", "fp32", "hot")}
    bench.cache.store.path(bench.blobs[1].digest).unlink()
    assert bench.series("expert_tier") == {("0", "fp32", "hot"): 1}


async def test_an_expert_that_was_fetched_but_found_no_room_is_warm(bench):
    bench.residents.budget_bytes = 1
    assert "more than are free" in (await bench.orders.carry_out(bench.load_order(0))).error
    assert bench.series("expert_tier") == {("0", "fp32", "warm"): 1}


def until(holds):
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        threading.Event().wait(0.005)
