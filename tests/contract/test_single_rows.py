"""Single rows of weighted routers over real runtimes: the short way gives, to the bit, what the long way gives."""

from __future__ import annotations

import numpy as np
import pytest

from expertmesh_common.bundle.manifest import Blob, Expert, Layer
from expertmesh_common.bundle.manifest import Gate as GateConfig
from expertmesh_controller.cluster.routes import Epoch, InstanceRoute, RouteTable
from expertmesh_controller.gateway.dispatch.links.opening import Caller
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gating.gate import Gate
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import ExpertName
from models.made_experts import HIDDEN, WIDTH
from rigs.expert_planes import follow, soon
from rigs.expert_worker import ExpertWorker
from rigs.loaded_runtime import EXPERTS, LAYER, MODEL, loaded_runtime, stored_experts

BLOB = Blob(digest="0" * 64, size_bytes=1)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"  # a traced row goes the long way, at both ends


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    return stored_experts(tmp_path_factory.mktemp("blobs"))


@pytest.fixture
def runtimes(blobs):
    return [loaded_runtime(blobs, Lanes(1)) for _ in range(3)]


@pytest.fixture
def workers(runtimes):
    running = [ExpertWorker(runtime, f"w{n}") for n, runtime in enumerate(runtimes)]
    yield running
    for worker in running:
        worker.stop(0.1)


@pytest.fixture(params=["output", "input"])
def weight_on(request):
    return request.param


def table(n, workers, held):
    """Epoch (1, n); `held` says, per expert, on which workers."""
    instances = [InstanceRoute(MODEL, LAYER, e, f"w{w}", "fp32") for e, where in enumerate(held) for w in where]
    return RouteTable(Epoch(1, n), tuple(worker.route for worker in workers), tuple(instances))


@pytest.fixture
def plane(workers, weight_on):
    config = GateConfig(
        scorer="softmax", picker="top_k", max_k=3, weighting="normalised", weight_on=weight_on, weights=BLOB
    )
    router = np.random.default_rng(1).standard_normal((HIDDEN, EXPERTS)).astype(np.float32) / 8
    gate = Gate(config, {"router": router, "bias": np.zeros(EXPERTS, np.float32)})
    experts = tuple(Expert(index=e, width=WIDTH, frequency=0.6, blobs={}) for e in range(EXPERTS))
    layers = [
        Layer(index=i, kind="moe", gate=config, shared_width=0, total_width=EXPERTS * WIDTH, experts=experts)
        for i in range(LAYER + 1)
    ]
    made = ExpertPlane(MODEL, layers, [gate] * len(layers), LinkPool(Caller("g", transport="unix")))
    follow(made, table(1, workers, [(e % 3,) for e in range(EXPERTS)]))
    yield made
    made.close()


def some_row(seed):
    return 2 * np.random.default_rng(seed).standard_normal((1, HIDDEN)).astype(np.float32)


def both_ways(plane, row):
    """The row's result on the short way and on the long one."""
    plane.trace = ""
    short = plane.run(LAYER, row, soon())
    plane.trace = TRACE
    return short, plane.run(LAYER, row, soon())


def test_rows_of_any_routing_come_back_as_on_the_long_way_to_the_bit(plane, runtimes):
    for seed in range(60):
        short, long = both_ways(plane, some_row(seed))

        assert short.tobytes() == long.tobytes()
    assert all(runtime.residents.recurring for runtime in runtimes)


def test_a_row_whose_experts_were_asked_before_is_weighed_anew(plane):
    row = some_row(3)
    first, _ = both_ways(plane, row)
    gate = plane._gates[LAYER]
    routing, other = gate.route_row(row), gate.route_row(row * np.float32(1.01))
    assert routing.experts == other.experts
    assert routing.weights != other.weights

    short, long = both_ways(plane, row * np.float32(1.01))

    assert short.tobytes() == long.tobytes() != first.tobytes()


def test_an_expert_that_has_left_its_worker_is_asked_of_a_replica(plane, workers, runtimes):
    plane.update(table(2, workers, [(0, 1)] * EXPERTS))
    expected, _ = both_ways(plane, some_row(5))
    asked = plane._gates[LAYER].route(some_row(5)).expert.tolist()
    before = plane.counters.retried_pairs
    for index in asked:
        runtimes[0].residents.unload(ExpertName(MODEL, LAYER, index), "fp32")
    plane.trace = ""

    found = plane.run(LAYER, some_row(5), soon())

    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert 0 < plane.counters.retried_pairs - before <= len(asked)


def test_a_new_table_moves_single_rows_at_once(plane, workers, runtimes):
    both_ways(plane, some_row(1))
    plane.update(table(2, workers, [(2,)] * EXPERTS))
    before = [runtime.work.frames for runtime in runtimes]

    short, long = both_ways(plane, some_row(1))

    assert [runtime.work.frames - n for runtime, n in zip(runtimes, before, strict=True)] == [0, 0, 2]
    assert short.tobytes() == long.tobytes()
