"""Frames that recur, over every transport to a real runtime: equal answers, and nobody else has to wait."""

import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from expertmesh_common.channel.frame import Request, Status, model_key
from expertmesh_controller.gateway.dispatch.links.opening import Caller, open_link
from expertmesh_controller.gateway.dispatch.links.watchdog import Watchdog
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import ExpertName
from models.made_experts import HIDDEN
from rigs.expert_worker import ExpertWorker
from rigs.loaded_runtime import LAYER, MODEL, loaded_runtime, stored_experts


@pytest.fixture
def runtime(tmp_path):
    return loaded_runtime(stored_experts(tmp_path), Lanes(1))


@pytest.fixture
def worker(runtime, spin_us):
    served = ExpertWorker(runtime, spin_us=spin_us)
    yield served
    served.stop(0.1)


@pytest.fixture
def spin_us():
    return 0


@pytest.fixture
def connect(worker, spin_us):
    watchdog, links = Watchdog(), []

    def start(transport):
        links.append(open_link(worker.route, Caller("g", transport=transport, spin_us=spin_us), watchdog))
        return links[-1]

    yield start
    for link in links:
        link.close()
    watchdog.close()


def ask(seq, experts=(0, 1, 3), rows=1):
    given = np.random.default_rng(seq).standard_normal((rows, HIDDEN)).astype(np.float32)
    return Request(
        seq, (1, 1), model_key(MODEL), LAYER, 5000, {"rows": given}, np.zeros(len(experts), np.uint32),
        np.array(experts, np.uint16), np.ones(len(experts), np.float32),
    )  # fmt: skip


def trade(link, request):
    expires_at = time.monotonic() + 10
    link.post(request, expires_at)
    return link.take(expires_at)


@pytest.mark.parametrize(("transport", "spin_us"), [("grpc", 0), ("unix", 0), ("tcp", 0), ("unix", 20_000)])
def test_every_answer_of_a_long_conversation_is_that_of_the_runtime(runtime, connect, transport):
    link = connect(transport)
    for seq in range(1, 60):
        request = ask(seq, experts=(0, 1, 3) if seq % 3 else (2,), rows=2 if seq % 7 == 0 else 1)
        reply = trade(link, request)

        assert (reply.seq, reply.status) == (seq, Status.OK)
        np.testing.assert_array_equal(reply.rows, runtime.execute(request).rows)
    assert runtime.residents.recurring


@pytest.mark.parametrize("transport", ["grpc", "unix"])
def test_after_an_unload_the_conversation_turns_stale_at_once(runtime, connect, transport):
    link = connect(transport)
    for seq in range(1, 4):
        trade(link, ask(seq))

    runtime.residents.unload(ExpertName(MODEL, LAYER, 1), "fp32")

    reply = trade(link, ask(9))
    assert (reply.status, reply.missing) == (Status.STALE, (1,))


def test_while_a_frame_waits_for_the_only_lane_the_worker_answers_others(runtime, worker, connect):
    link = connect("grpc")
    trade(link, ask(1))
    lane = runtime._lanes.take(1.0)
    replies = []
    waiting = threading.Thread(target=lambda: replies.append(trade(link, ask(2))))
    waiting.start()
    try:
        end = time.monotonic() + 10
        while runtime.work.queued_frames == 0:
            assert time.monotonic() < end
            threading.Event().wait(0.005)
        with grpc.insecure_channel(f"127.0.0.1:{worker.port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            found = health.Check(health_pb2.HealthCheckRequest(), timeout=3)
    finally:
        runtime._lanes.give(lane)
        waiting.join(10)

    assert found.status == health_pb2.HealthCheckResponse.SERVING
    assert replies[0].status is Status.OK
