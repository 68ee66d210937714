"""Real worker processes against a scripted control loop over real gRPC."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from expertmesh_api.v1 import experts_pb2, experts_pb2_grpc, membership_pb2
from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.channel.frame import Request, Status, decode_reply, encode_request, model_key
from expertmesh_common.channel.layout import VERSION
from expertmesh_common.channel.messages import EXECUTE_METHOD, unwrap, wrap
from expertmesh_common.errors import Precondition
from expertmesh_common.graphs.expert import resident_bytes
from expertmesh_common.security import Security, dial
from expertmesh_controller.local.reaching import free_port
from models.made_experts import HIDDEN, SMALL, reference, store_expert
from models.scripted_control import ScriptedControl

TOKEN = "secret"
FIELDS = dataclasses.asdict(SMALL)
SECURITY = Security(token=TOKEN)
ROWS = np.random.default_rng(0).standard_normal((3, HIDDEN)).astype(np.float32)


@pytest.fixture
async def control(tmp_path):
    control = ScriptedControl(BlobStore(tmp_path / "origin"), SECURITY)
    await control.start()
    yield control
    await control.stop()


@pytest.fixture
def experts(tmp_path):
    """Blobs of three experts, at the origin."""
    return [store_expert(tmp_path / "origin", SMALL, seed)[1] for seed in range(3)]


@pytest.fixture
async def start_worker(control, tmp_path):
    children = []

    async def start(*options, token=TOKEN, budget="1MB", cache="cache", name="w1"):
        command = [
            sys.executable, "-m", "expertmesh.cli.main", "worker", "--join", control.address, "--id", name,
            "--cache", str(tmp_path / cache), "--listen", "127.0.0.1:0", "--budget", budget, *options,
        ]  # fmt: skip
        environment = {**os.environ, "EXPERTMESH_TOKEN": token}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        child = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, env=environment)
        children.append(child)
        return child

    yield start
    for child in children:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def end_of(child):
    """Its exit code and what it wrote, once it has ended by itself."""
    async with asyncio.timeout(20):
        _, text = await child.communicate()
    return child.returncode, text.decode()


async def execute(address, index, layer=0):
    """One frame over gRPC to a worker."""
    n = len(ROWS)
    request = Request(
        1, (1, 1), model_key("m"), layer, 5000, {"rows": ROWS}, np.arange(n, dtype=np.uint32),
        np.full(n, index, np.uint16), np.ones(n, np.float32),
    )  # fmt: skip
    async with dial(address, Security()) as channel, asyncio.timeout(10):
        call = channel.stream_stream(EXECUTE_METHOD)(metadata=SECURITY.metadata())
        await call.write(wrap(encode_request(request)))
        reply = decode_reply(unwrap(await call.read()))
        call.cancel()
    return reply


async def stat(address):
    async with dial(address, SECURITY) as channel:
        return await experts_pb2_grpc.ExpertsStub(channel).Stat(experts_pb2.StatRequest(), timeout=10)


def assert_computes(reply, seed):
    expected = reference(SMALL, seed, ROWS)
    assert reply.status is Status.OK
    np.testing.assert_allclose(reply.rows, expected, atol=1e-5 * np.abs(expected).max())


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


async def test_a_killed_worker_is_noticed_and_comes_back_as_a_new_generation(control, start_worker, experts):
    child = await start_worker()
    before = await control.next_worker()
    await before.order(control.load(0, SMALL, experts[0]))

    child.kill()
    await asyncio.wait_for(before.ended.wait(), 5)
    await start_worker()
    after = await control.next_worker()

    assert after.hello.worker_id == before.hello.worker_id
    assert after.hello.generation != before.hello.generation
    assert list(after.hello.resident) == []


async def test_a_worker_serves_on_without_its_controller_and_joins_again_with_its_experts(
    control, start_worker, experts
):
    await start_worker()
    before = await control.next_worker()
    address = before.hello.endpoints[0].address
    assert (await before.order(control.load(2, SMALL, experts[2]))).ok

    await control.stop()
    assert_computes(await execute(address, 2), seed=2)
    await control.start(control.address)
    after = await control.next_worker()

    assert after.hello.generation == before.hello.generation
    (resident,) = after.hello.resident
    assert (resident.expert.index, resident.precision, resident.digest) == (2, "fp32", experts[2].digest)
    assert resident.resident_bytes == resident_bytes(SMALL)
    assert_computes(await execute(address, 2), seed=2)


async def test_a_worker_says_what_it_holds_for_numerics_fast_so_that_nobody_takes_it_for_exact(
    control, start_worker, experts
):
    await start_worker()
    before = await control.next_worker()
    fast = dataclasses.replace(SMALL, numerics="fast")
    assert (await before.order(control.load(0, SMALL, experts[0]))).ok
    assert (await before.order(control.load(1, fast, experts[1]))).ok
    assert (await before.order(control.load(2, fast, experts[2]))).ok
    assert (await before.order(control.load(2, SMALL, experts[2]))).ok  # not done already: that one is not exact
    refused = await before.order(control.load(0, SimpleNamespace(**{**FIELDS, "numerics": "quick"}), experts[0]))
    assert "no expert template for numerics 'quick': there are exact, fast" in refused.error

    await control.stop()
    await control.start(control.address)
    found = {r.expert.index: r for r in (await control.next_worker()).hello.resident}

    assert {index: (r.digest, r.fast_digest) for index, r in found.items()} == {
        0: (experts[0].digest, ""),
        1: ("", experts[1].digest),  # a control loop that knows no numerics finds nothing that it could adopt
        2: (experts[2].digest, ""),
    }
    assert_computes(await execute(before.hello.endpoints[0].address, 1), seed=1)


async def test_a_worker_that_is_told_to_stop_leaves_first_and_ends_well(control, start_worker, experts):
    child = await start_worker()
    worker = await control.next_worker()
    await worker.order(control.load(0, SMALL, experts[0]))

    child.send_signal(signal.SIGTERM)
    await asyncio.wait_for(worker.left.wait(), 5)
    code, text = await end_of(child)

    assert code == 0, text
    assert "worker w1 stopped" in text
    assert "Traceback" not in text


async def test_a_worker_whose_controller_is_away_can_be_stopped(control, start_worker):
    child = await start_worker()
    await control.next_worker()
    await control.stop()

    child.send_signal(signal.SIGTERM)
    code, text = await end_of(child)
    await control.start(control.address)

    assert code == 0, text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("refusal", "token", "message"),
    [
        (None, "wrong", "refused this worker: the token is missing or wrong"),
        (Precondition("version 0.1.0 does not work with 9.0.0"), TOKEN, "version 0.1.0 does not work with 9.0.0"),
        (Precondition("generation abc of w1 was replaced"), TOKEN, "generation abc of w1 was replaced"),
    ],
)
async def test_a_refused_worker_says_why_and_ends(control, start_worker, refusal, token, message):
    control.refusal = refusal

    code, text = await end_of(await start_worker(token=token))

    assert code == 4
    assert message in text.splitlines()[-1]
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "much"), "size 'much' is not valid"),
        (("--provider", "tpu"), "provider 'tpu' is unknown: supported are cpu, cuda"),
        (("--listen", "nowhere"), "address 'nowhere' is not valid: write host:port"),
        (("--tls", "/nonexistent"), "ca.pem is missing"),
    ],
)
async def test_wrong_flags_end_at_once_with_one_line(start_worker, options, message):
    code, text = await end_of(await start_worker(*options))

    assert code == 2
    assert message in text.splitlines()[-1]
    assert "Traceback" not in text


async def test_a_controller_may_restart_again_and_again(control, start_worker):
    child = await start_worker()
    generations = set()

    for _ in range(8):
        worker = await control.next_worker()
        await asyncio.wait_for(worker.heartbeats.get(), 5)
        generations.add(worker.hello.generation)
        await control.stop()
        await control.start(control.address)
    await control.next_worker()

    assert child.returncode is None
    assert len(generations) == 1


async def test_a_controller_of_an_older_term_is_not_followed(control, start_worker):
    await start_worker()
    await control.next_worker()
    await control.stop()
    control.term -= 1
    await control.start(control.address)
    old = await control.next_worker()
    await asyncio.wait_for(old.ended.wait(), 5)
    control.term += 2

    worker = await control.next_worker()
    while worker.ended.is_set():  # it may have been welcomed by the old term several times
        worker = await control.next_worker()

    assert (await asyncio.wait_for(worker.heartbeats.get(), 5)).n == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.PERMISSION_DENIED, None])
async def test_however_a_stream_ends_the_worker_joins_again(control, start_worker, code):
    await start_worker()
    before = await control.next_worker()

    before.down.put_nowait(code)
    after = await control.next_worker()

    assert after.hello.generation == before.hello.generation


async def test_expert_streams_listen_on_the_port_that_a_firewall_was_opened_for(control, start_worker):
    port = free_port("127.0.0.1")
    await start_worker("--stream-port", str(port))
    stream = await control.next_worker()
    offer = experts_pb2.OpenRequest(gateway_id="g", host_id="elsewhere", transports=["tcp"], frame_versions=[VERSION])
    async with dial(stream.hello.endpoints[0].address, SECURITY) as channel:
        opened = await experts_pb2_grpc.ExpertsStub(channel).Open(offer)
    assert opened.endpoint.address == f"127.0.0.1:{port}"
