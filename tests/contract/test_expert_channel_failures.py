"""What a gateway sees when workers die, hang, lie or are elsewhere: real processes, real signals."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from expertmesh_common.bundle.manifest import Blob, Expert, Layer
from expertmesh_common.bundle.manifest import Gate as GateConfig
from expertmesh_common.channel.frame import Request, model_key
from expertmesh_common.errors import DeadlinePassed, Unavailable
from expertmesh_controller.cluster.routes import Epoch, InstanceRoute, RouteTable
from expertmesh_controller.gateway.dispatch.exchange import HopTimeout
from expertmesh_controller.gateway.dispatch.links.base import LinkDown, LinkTimeout
from expertmesh_controller.gateway.dispatch.links.opening import Caller, open_link
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.links.watchdog import Watchdog
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gating.gate import Gate
from rigs.expert_hosts import TinyHost, expert_weights, swiglu
from rigs.expert_worker import ChildWorker, ExpertWorker

LAYERS, EXPERTS, HIDDEN, WIDTH = 2, 4, 12, 8
SIZES = (LAYERS, EXPERTS, HIDDEN, WIDTH)
WEIGHTS = expert_weights(*SIZES)
EVERYTHING = sorted(WEIGHTS)
BLOB = Blob(digest="0" * 64, size_bytes=1)
CONFIG = GateConfig(scorer="linear", picker="threshold", threshold=0.0, min_k=1, max_k=EXPERTS, weights=BLOB)
ROUTER = np.random.default_rng(3).standard_normal((HIDDEN, EXPERTS)).astype(np.float32)
TRANSPORTS = ["unix", "tcp", "grpc"]


@pytest.fixture
def start():
    """Starts child workers; whatever is left of them ends with the test."""
    children = []

    def run(worker_id="w0", resident=EVERYTHING, **settings):
        children.append(ChildWorker(kind="tiny", sizes=SIZES, resident=resident, worker_id=worker_id, **settings))
        return children[-1]

    yield run
    for child in children:
        child.stop()


@pytest.fixture
def start_here():
    """Starts workers on threads of this process, so that a test can look into their host."""
    workers = []

    def run(worker_id="w0", resident=EVERYTHING):
        host = TinyHost(WEIGHTS, set(resident))
        workers.append(ExpertWorker(host, worker_id))
        return workers[-1], host

    yield run
    for worker in workers:
        worker.stop(0.1)


@pytest.fixture
def make_plane():
    planes = []

    def make(transport="unix", local=None, hop_s=2.0):
        experts = tuple(Expert(index=e, width=WIDTH + e, frequency=0.5, blobs={}) for e in range(EXPERTS))
        layers = [
            Layer(index=i, kind="moe", gate=CONFIG, shared_width=1, total_width=39, experts=experts)
            for i in range(LAYERS)
        ]
        gates = [Gate(CONFIG, {"router": ROUTER, "bias": np.zeros(EXPERTS, np.float32)}) for _ in range(LAYERS)]
        pool = LinkPool(Caller("g", transport=transport), local)
        planes.append(ExpertPlane("m", layers, gates, pool, HopTimeout(hop_s, 0.0)))
        return planes[-1]

    yield make
    for plane in planes:
        plane.close()


def table(n, *holdings):
    """Epoch (1, n) with (worker route, held experts) pairs."""
    instances = [InstanceRoute("m", *at, route.worker_id, "fp32") for route, held in holdings for at in held]
    return RouteTable(Epoch(1, n), tuple(route for route, _ in holdings), tuple(instances))


def some_rows(count=5, seed=0):
    return np.random.default_rng(seed).standard_normal((count, HIDDEN)).astype(np.float32)


def dense(layer, rows):
    scores = rows @ ROUTER
    picked = scores >= 0
    picked[np.arange(len(rows)), scores.argmax(axis=1)] = True
    return sum(np.where(picked[:, [e]], swiglu(rows, WEIGHTS[layer, e]), 0) for e in range(EXPERTS))


def soon(seconds=15.0):
    return time.monotonic() + seconds


def check(plane, layer, rows, within_s=15.0):
    np.testing.assert_allclose(plane.run(layer, rows, soon(within_s)), dense(layer, rows), atol=1e-5)


def follow(plane, routes):
    """Give the plane a table and wait until every worker's link is up."""
    plane.update(routes)
    pool, end = plane._pool, soon()
    while not all(pool.link(worker) for worker in routes.workers):
        count = pool.bell.count
        assert all(pool.link(worker) for worker in routes.workers) or pool.bell.wait_beyond(
            count, end - time.monotonic()
        )


def ask(rows, seq=1):
    one = np.zeros(1, np.uint32)
    return Request(
        seq, (1, 1), model_key("m"), 0, 0, {"rows": rows}, one, one.astype(np.uint16), np.ones(1, np.float32)
    )


@pytest.fixture
def open_one():
    watchdog, links = Watchdog(), []

    def connect(route, transport):
        links.append(open_link(route, Caller("g", transport=transport), watchdog))
        return links[-1]

    yield connect
    for link in links:
        link.close()
    watchdog.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_worker_killed_with_a_request_under_way_is_an_error_at_once(start, open_one, transport):
    worker = start()
    link = open_one(worker.route, transport)
    worker.freeze()  # so that the request cannot be answered before the kill
    link.post(ask(some_rows(1)), soon())
    killer = threading.Timer(0.2, worker.kill)
    killer.start()
    begin = time.monotonic()
    with pytest.raises(LinkDown) as caught:
        link.take(soon())
    killer.join()
    assert not isinstance(caught.value, LinkTimeout)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stopped_process_costs_one_hop_timeout_and_its_rows_go_to_a_replica(start, make_plane, transport):
    first, second = start("w0"), start("w1")
    plane = make_plane(transport, hop_s=0.5)
    follow(plane, table(1, (first.route, EVERYTHING), (second.route, EVERYTHING)))
    for layer in range(LAYERS):
        check(plane, layer, some_rows())
    first.freeze()
    begin = time.monotonic()
    check(plane, 0, some_rows(9))
    assert 0.4 < time.monotonic() - begin < 5
    assert plane.take_suspects() == ("w0",)
    assert plane.take_suspects() == ()
    before = plane.counters.retried_pairs
    check(plane, 1, some_rows(9))  # it is not asked again
    assert plane.counters.retried_pairs == before


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_killed_worker_changes_no_result_while_a_replica_lives(start, make_plane, transport):
    first, second = start("w0"), start("w1")
    plane = make_plane(transport)
    follow(plane, table(1, (first.route, EVERYTHING), (second.route, EVERYTHING)))
    check(plane, 0, some_rows())
    first.kill()
    for turn in range(6):
        check(plane, turn % LAYERS, some_rows(7, turn))
    assert plane.take_suspects() == ("w0",)


def test_a_thawed_worker_is_used_again_once_its_link_is_up(start, make_plane):
    only = start("w0")
    plane = make_plane(hop_s=0.3)
    plane.update(table(1, (only.route, EVERYTHING)))
    check(plane, 0, some_rows())
    only.freeze()
    thaw = threading.Timer(0.8, only.thaw)
    thaw.start()
    check(plane, 0, some_rows())
    thaw.join()


def test_only_the_stale_pairs_are_asked_again_elsewhere(start_here, make_plane):
    (first, host), (second, other) = start_here("w0"), start_here("w1")
    plane = make_plane()
    follow(plane, table(1, (first.route, EVERYTHING), (second.route, EVERYTHING)))
    check(plane, 0, some_rows(8))
    [(_, here, _)], [(_, there, _)] = host.requests, other.requests
    assert here
    assert there
    gone = here[0][1]
    host.resident -= {(0, gone)}
    host.requests.clear()
    other.requests.clear()
    check(plane, 0, some_rows(8))
    assert plane.counters.retried_pairs == len(here)  # not those of the other worker
    assert host.requests[0][1] == here
    assert other.requests[0][1] == there
    second_round = [pair for _, pairs, _ in (*host.requests[1:], *other.requests[1:]) for pair in pairs]
    assert sorted(e for _, e in second_round) == sorted(e for _, e in here)
    assert all(e != gone for _, pairs, _ in host.requests[1:] for _, e in pairs)
    assert plane.take_suspects() == ()


def test_failed_experts_are_run_by_a_replica(start_here, make_plane):
    (first, host), (second, _) = start_here("w0"), start_here("w1")
    plane = make_plane()
    follow(plane, table(1, (first.route, EVERYTHING), (second.route, EVERYTHING)))
    host.failing = True
    check(plane, 0, some_rows())
    assert host.requests


def test_an_expert_that_fails_everywhere_is_unavailable_with_the_workers_words(start_here, make_plane):
    worker, host = start_here()
    plane = make_plane()
    plane.update(table(1, (worker.route, EVERYTHING)))
    check(plane, 0, some_rows())
    host.failing = True
    with pytest.raises((Unavailable, DeadlinePassed), match="told to fail"):
        plane.run(0, some_rows(), soon(0.5))
    host.failing = False
    check(plane, 0, some_rows())  # it is asked again after a while


def test_rows_wait_for_a_newer_table_while_an_expert_has_no_replica(start_here, make_plane):
    (first, _), (second, _) = start_here("w0", EVERYTHING[:3]), start_here("w1")
    plane = make_plane()
    plane.update(table(1, (first.route, EVERYTHING[:3])))
    change = threading.Timer(
        0.4, plane.update, [table(2, (first.route, EVERYTHING[:3]), (second.route, EVERYTHING[3:]))]
    )
    change.start()
    begin = time.monotonic()
    check(plane, 1, some_rows())
    assert time.monotonic() - begin > 0.3
    change.join()


def test_without_a_newer_table_the_error_names_layer_and_expert(start_here, make_plane):
    worker, _ = start_here()
    plane = make_plane()
    plane.update(table(3, (worker.route, [at for at in EVERYTHING if at != (1, 2)])))
    check(plane, 0, some_rows())
    begin = time.monotonic()
    with pytest.raises(Unavailable, match=r"layer 1: no live worker holds expert 2 as of epoch 1\.3"):
        plane.run(1, some_rows(), soon(0.5))
    assert 0.4 < time.monotonic() - begin < 2


def test_a_slow_but_live_worker_is_a_passed_deadline_and_no_suspect(start_here, make_plane):
    worker, host = start_here()
    plane = make_plane()
    plane.update(table(1, (worker.route, EVERYTHING)))
    check(plane, 0, some_rows())
    host.pause.set()
    with pytest.raises(DeadlinePassed, match="layer 0"):
        plane.run(0, some_rows(), soon(0.3))
    host.pause.clear()
    host.resume.set()
    assert plane.take_suspects() == ()
    check(plane, 0, some_rows())


def test_an_older_table_is_ignored(start_here, make_plane):
    worker, host = start_here()
    plane = make_plane()
    plane.update(table(5, (worker.route, EVERYTHING)))
    plane.update(table(4))
    check(plane, 0, some_rows())
    assert host.requests[-1][2] == (1, 5)


def test_a_returning_ghost_is_not_asked(start_here, make_plane):
    worker, host = start_here()
    plane = make_plane()
    plane.update(table(1, (replace(worker.route, generation="g2"), EVERYTHING)))
    with pytest.raises(Unavailable):
        plane.run(0, some_rows(), soon(0.5))
    assert not host.requests


def test_local_experts_run_while_remote_workers_are_busy(start_here, make_plane):
    (worker, remote), order = start_here("w1"), []

    class Local(TinyHost):
        def execute(self, request):
            assert remote.entered.wait(5)  # posted before we started
            order.append("local")
            remote.resume.set()
            return super().execute(request)

    local = Local(WEIGHTS, set(WEIGHTS))
    plane = make_plane(local={"here": local})
    here = replace(worker.route, worker_id="here")
    remote.pause.set()
    held = EVERYTHING[0::2], EVERYTHING[1::2]
    follow(plane, table(1, (here, held[0]), (worker.route, held[1])))
    check(plane, 0, some_rows(9))
    assert order == ["local"]


def test_one_process_needs_no_worker_at_all(make_plane, start_here):
    local = TinyHost(WEIGHTS, set(WEIGHTS))
    worker, _ = start_here()
    plane = make_plane(local={"here": local})
    plane.update(table(1, (replace(worker.route, worker_id="here"), EVERYTHING)))
    for count in (0, 1, 6):
        check(plane, 1, some_rows(count))
    assert plane.traffic().bytes_sent == 0


def test_the_plane_counts_rows_per_expert_routed_neurons_and_bytes(start_here, make_plane):
    worker, host = start_here()
    plane = make_plane()
    plane.update(table(1, (worker.route, EVERYTHING)))
    rows = some_rows(6)
    check(plane, 1, rows)
    pairs = [pair for _, asked, _ in host.requests for pair in asked]
    assert plane.counters.rows() == {(1, e): n for e in range(EXPERTS) if (n := sum(x == e for _, x in pairs))}
    assert plane.last_active.tolist() == [sum(WIDTH + e for t, e in pairs if t == row) for row in range(6)]
    assert plane.last_active.dtype == np.int32
    traffic = plane.traffic()
    assert traffic.frames == 1
    assert traffic.bytes_sent > rows.nbytes
    assert traffic.bytes_received > rows.nbytes


def test_a_workers_traffic_still_counts_after_it_left_the_table(start_here, make_plane):
    (first, _), (second, _) = start_here("w0"), start_here("w1")
    plane = make_plane()
    plane.update(table(1, (first.route, EVERYTHING)))
    check(plane, 0, some_rows())
    before = plane.traffic()
    plane.update(table(2, (second.route, EVERYTHING)))
    check(plane, 0, some_rows())
    assert plane.traffic().bytes_sent == 2 * before.bytes_sent
