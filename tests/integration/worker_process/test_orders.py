"""What a worker process says of itself, and what becomes of orders."""

from __future__ import annotations

import asyncio
import dataclasses

from expertmesh_api.v1 import experts_pb2, experts_pb2_grpc, membership_pb2
from expertmesh_common.channel.layout import VERSION
from expertmesh_common.graphs.expert import resident_bytes
from expertmesh_common.security import dial
from expertmesh_controller.local.reaching import free_port
from models.made_experts import SMALL
from rigs.worker_processes import SECURITY, assert_computes, execute, stat

FIELDS = dataclasses.asdict(SMALL)


async def test_a_worker_joins_with_what_it_measured_and_beats(control, start_worker):
    await start_worker("--declared-speed", "1234", budget="2MiB")

    worker = await control.next_worker()
    beats = [await asyncio.wait_for(worker.heartbeats.get(), 5) for _ in range(3)]

    hello = worker.hello
    assert (hello.worker_id, hello.version, len(hello.generation)) == ("w1", "0.1.0", 16)
    assert [endpoint.transport for endpoint in hello.endpoints] == ["grpc"]
    assert hello.capabilities.budget_bytes == 2 * 2**20
    assert hello.capabilities.speed_rows_per_s == 1234
    assert hello.capabilities.providers == ["cpu"]
    assert min(hello.capabilities.gemv_gb_per_s, hello.capabilities.gemm_gflops, hello.capabilities.cores) > 0
    assert [beat.n for beat in beats] == [1, 2, 3]


async def test_ordered_experts_are_fetched_loaded_and_served(control, start_worker, experts):
    await start_worker()
    worker = await control.next_worker()
    address = worker.hello.endpoints[0].address

    for index in (0, 1):
        result = await worker.order(control.load(index, SMALL, experts[index]))
        assert (result.ok, result.error) == (True, "")
    assert_computes(await execute(address, 1), seed=1)
    found = await stat(address)

    assert result.resident_bytes == 2 * resident_bytes(SMALL) == found.resident_bytes
    assert [(expert.expert.index, expert.rows) for expert in found.experts] == [(0, 0), (1, 3)]

    assert (await worker.order(control.unload(1, "fp32"))).ok
    assert (await execute(address, 1)).missing == (1,)
    assert (await stat(address)).resident_bytes == resident_bytes(SMALL)


async def test_many_orders_at_once_all_get_their_results(control, start_worker, experts):
    await start_worker(budget="100MB")
    worker = await control.next_worker()

    orders = [control.load(index, SMALL, experts[index % 3]) for index in range(60)]
    orders += [control.unload(index, "fp32") for index in range(0, 60, 2)]
    for order in orders:
        worker.down.put_nowait(membership_pb2.ControlMessage(order=order))
    async with asyncio.timeout(20):
        results = [await worker.results.get() for _ in orders]

    assert {result.order_id for result in results} == {order.order_id for order in orders}
    assert all(result.ok for result in results)
    found = await stat(worker.hello.endpoints[0].address)
    assert [expert.expert.index for expert in found.experts if expert.expert.index % 2 == 0] == []
    assert len(found.experts) == 30


async def test_a_peer_serves_its_cache_to_another_worker(control, start_worker, experts):
    await start_worker()
    first = await control.next_worker()
    assert (await first.order(control.load(0, SMALL, experts[0]))).ok
    await start_worker(name="w2", cache="cache-2")
    second = await control.next_worker()

    result = await second.order(control.load(0, SMALL, experts[0], sources=[first.hello.endpoints[0].address]))

    assert result.ok, result.error
    assert_computes(await execute(second.hello.endpoints[0].address, 0), seed=0)


async def test_what_cannot_be_done_is_a_clear_result_and_the_worker_lives(control, start_worker, experts):
    await start_worker(budget=str(resident_bytes(SMALL) + 1000))
    worker = await control.next_worker()
    lost = experts[1].model_copy(update={"digest": "0" * 64})

    mixed = await worker.order(control.load(1, dataclasses.replace(SMALL, width=16), experts[1]))
    assert (await worker.order(control.load(0, SMALL, experts[0]))).ok
    full = await worker.order(control.load(1, SMALL, experts[1]))
    gone = await worker.order(control.load(1, SMALL, lost))
    old = await worker.order(control.unload(0, "fp32", term=4))

    assert f"{resident_bytes(SMALL) - 1000} more than are free" in full.error
    assert f"blob {'0' * 64}" in gone.error
    assert "NOT_FOUND" in gone.error
    assert "tensor gate_up is float32 [64, 64], expected float32 [64, 32]" in mixed.error
    assert "term 4, term 5 was seen" in old.error
    assert [result.ok for result in (full, gone, mixed, old)] == [False] * 4
    assert_computes(await execute(worker.hello.endpoints[0].address, 0), seed=0)


async def test_expert_streams_listen_on_the_port_that_a_firewall_was_opened_for(control, start_worker):
    port = free_port("127.0.0.1")
    await start_worker("--stream-port", str(port))
    stream = await control.next_worker()
    offer = experts_pb2.OpenRequest(gateway_id="g", host_id="elsewhere", transports=["tcp"], frame_versions=[VERSION])
    async with dial(stream.hello.endpoints[0].address, SECURITY) as channel:
        opened = await experts_pb2_grpc.ExpertsStub(channel).Open(offer)
    assert opened.endpoint.address == f"127.0.0.1:{port}"
