"""Links that do not come up: told to whoever places experts, tried again for ever, whatever a worker answers."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import numpy as np
import pytest

from e2e.running import until
from expertmesh_api.v1 import common_pb2
from expertmesh_common.bundle.manifest import Blob, Expert, Layer
from expertmesh_common.bundle.manifest import Gate as GateConfig
from expertmesh_common.errors import Unavailable
from expertmesh_controller.cluster.routes import EndpointAddress, Epoch, InstanceRoute, RouteTable, WorkerRoute
from expertmesh_controller.gateway.dispatch.exchange import HopTimeout
from expertmesh_controller.gateway.dispatch.links.opening import Caller
from expertmesh_controller.gateway.dispatch.links.pool import OVERDUE_S, LinkPool
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.dispatch.roster import Roster
from expertmesh_controller.gateway.gating.gate import Gate
from rigs.expert_hosts import IdentityHost
from rigs.expert_worker import ExpertWorker

LONG_S = 10.0
PATIENCE_S = 0.1
HIDDEN = 12
ROWS = np.ones((3, HIDDEN), np.float32)
BLOB = Blob(digest="0" * 64, size_bytes=1)


@pytest.fixture
def pool():
    pool = LinkPool(Caller("g", transport="tcp"))
    yield pool
    pool.close()


@pytest.fixture
def worker():
    worker = ExpertWorker(IdentityHost())
    yield worker
    worker.stop(0.1)


@pytest.fixture
def silent():
    """A worker behind a firewall: packets arrive, nothing ever answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        endpoint = EndpointAddress("grpc", f"127.0.0.1:{listener.getsockname()[1]}")
        yield WorkerRoute("silent", "g1", (endpoint,), "elsewhere", 1.0)


def wait_for(pool, worker, up=True):
    while (pool.link(worker) is not None) is not up:
        assert pool.bell.wait_beyond(pool.bell.count, LONG_S)


def test_a_link_that_never_opens_is_told_again_and_again_after_two_seconds(pool, worker, silent):
    roster, began = Roster("m", [1], {}, pool), time.monotonic()
    roster.update(RouteTable(Epoch(1, 1), (silent, worker.route)))
    wait_for(pool, worker.route)
    until(lambda: roster.take_suspects() == ("silent",), LONG_S)
    assert OVERDUE_S <= time.monotonic() - began < 3 * OVERDUE_S  # a link may take its time
    assert roster.take_suspects() == ("silent",)
    roster.update(RouteTable(Epoch(1, 2), (worker.route,)))
    assert roster.take_suspects() == ()


def test_a_link_that_is_up_again_is_not_overdue(pool, worker):
    pool.follow([worker.route])
    wait_for(pool, worker.route)
    assert pool.overdue(0.0) == frozenset()
    pool.drop(pool.link(worker.route))
    wait_for(pool, worker.route)
    assert pool.overdue(0.0) == frozenset()


def test_an_answer_that_makes_no_sense_does_not_end_the_trying(pool, worker, caplog):
    right = worker.identity
    nonsense = common_pb2.Endpoint(transport="tcp", address="no port at all")
    worker.experts._identity = replace(right, streams=(nonsense,))
    pool.follow([worker.route])
    while "not foreseen" not in caplog.text:
        assert not pool.bell.wait_beyond(pool.bell.count, 0.02), "no link can have come up"
    worker.experts._identity = right
    wait_for(pool, worker.route)


def make_plane(pool, hop_s=5.0):
    config = GateConfig(scorer="linear", picker="threshold", threshold=0.0, min_k=1, max_k=1, weights=BLOB)
    experts = (Expert(index=0, width=1, frequency=1.0, blobs={}),)
    layer = Layer(index=0, kind="moe", gate=config, shared_width=1, total_width=2, experts=experts)
    gate = Gate(config, {"router": np.ones((HIDDEN, 1), np.float32), "bias": np.zeros(1, np.float32)})
    return ExpertPlane("m", [layer], [gate], pool, HopTimeout(hop_s, 0.0))


def held_by(*workers):
    return RouteTable(Epoch(1, 1), workers, tuple(InstanceRoute("m", 0, 0, w.worker_id, "fp32") for w in workers))


def test_patience_ends_the_wait_for_an_expert_that_nobody_serves(pool, silent):
    plane = make_plane(pool)
    plane.update(held_by(silent))
    began = time.monotonic()
    with pytest.raises(Unavailable, match="no live worker holds expert 0"):
        plane.run(0, ROWS, began + 60, patience_s=0.3)
    assert 0.2 < time.monotonic() - began < 3


def test_patience_does_not_end_the_work_of_a_slow_board(pool):
    class Slow(IdentityHost):
        def execute(self, request):
            time.sleep(3 * PATIENCE_S)
            return super().execute(request)

    slow = ExpertWorker(Slow(), "w0")
    try:
        plane = make_plane(pool)
        plane.update(held_by(slow.route))
        wait_for(pool, slow.route)
        assert plane.run(0, ROWS, time.monotonic() + 60, patience_s=PATIENCE_S).shape == ROWS.shape
        assert plane.counters.retried_pairs == 0
    finally:
        slow.stop(0.1)
