"""A gate that weighs the experts' input: from the manifest over the wire to what a worker multiplies."""

from __future__ import annotations

import time

import numpy as np
import pytest

from expertmesh_common.bundle.manifest import Blob, Expert, Layer
from expertmesh_common.bundle.manifest import Gate as GateConfig
from expertmesh_controller.cluster.routes import Epoch, InstanceRoute, RouteTable
from expertmesh_controller.gateway.dispatch.links.opening import Caller
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gating.gate import Gate
from expertmesh_worker.providers import provider
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import ExpertName, Residents
from models.made_experts import HIDDEN, SMALL, WIDTH, reference, store_expert
from rigs.expert_worker import ExpertWorker

EXPERTS = 4
BLOB = Blob(digest="0" * 64, size_bytes=1)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder, lanes = tmp_path_factory.mktemp("blobs"), Lanes(1)
    residents = Residents(10**9, provider("cpu"), lanes)
    for index in range(EXPERTS):
        path, _ = store_expert(folder, SMALL, index)
        residents.load(ExpertName("m", 0, index), SMALL, path, path.name)
    running = ExpertWorker(Runtime(residents, lanes))
    yield running
    running.stop(0.1)


@pytest.fixture(params=["input", "output"])
def weight_on(request):
    return request.param


@pytest.fixture(params=[("sigmoid", 1.0), ("one", 0.25)], ids=["weights of scores", "one weight, routings that recur"])
def gate(request, weight_on):
    weighting, scale = request.param
    config = GateConfig(
        scorer="linear", picker="top_k", max_k=2, weighting=weighting, scale=scale, weight_on=weight_on, weights=BLOB
    )
    router = np.random.default_rng(1).standard_normal((HIDDEN, EXPERTS)).astype(np.float32) / 4
    return config, Gate(config, {"router": router, "bias": np.zeros(EXPERTS, np.float32)})


@pytest.fixture
def plane(worker, gate):
    experts = tuple(Expert(index=e, width=WIDTH, frequency=0.5, blobs={}) for e in range(EXPERTS))
    layer = Layer(index=0, kind="moe", gate=gate[0], shared_width=0, total_width=EXPERTS * WIDTH, experts=experts)
    made = ExpertPlane("m", [layer], [gate[1]], LinkPool(Caller("g", transport="unix")))
    instances = tuple(InstanceRoute("m", 0, e, "w0", "fp32") for e in range(EXPERTS))
    made.update(RouteTable(Epoch(1, 1), (worker.route,), instances))
    yield made
    made.close()


def expected(gate, rows, weight_on):
    """float64 sums over the routing's pairs."""
    routing, out = gate.route(rows), np.zeros(rows.shape)
    for row, expert, weight in zip(routing.row, routing.expert, routing.weight.astype(np.float64), strict=True):
        before, after = (weight, 1.0) if weight_on == "input" else (1.0, weight)
        out[row] += after * reference(SMALL, expert, before * rows[row : row + 1].astype(np.float64))[0]
    return out


@pytest.mark.parametrize("count", [1, 6])
def test_the_weight_is_multiplied_where_the_manifest_says(plane, gate, weight_on, count):
    rows = 4 * np.random.default_rng(count).standard_normal((count, HIDDEN)).astype(np.float32)
    right = expected(gate[1], rows, weight_on)
    wrong = expected(gate[1], rows, "output" if weight_on == "input" else "input")
    assert np.abs(right - wrong).max() > 0.1  # experts are not linear: the place matters
    for _ in range(3):  # a routing that recurs takes the short way from the second time on
        np.testing.assert_allclose(plane.run(0, rows, time.monotonic() + 15), right, rtol=0, atol=1e-4)
