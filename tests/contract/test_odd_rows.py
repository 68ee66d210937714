"""Rows whose bytes are no multiple of eight: frames pad them, so they take the long way on both sides."""

from __future__ import annotations

import numpy as np
import pytest

from expertmesh_common.bundle.manifest import Blob, Expert, Layer
from expertmesh_common.bundle.manifest import Gate as GateConfig
from expertmesh_common.graphs.expert import ExpertShape
from expertmesh_controller.cluster.routes import Epoch, InstanceRoute, RouteTable
from expertmesh_controller.gateway.dispatch.links.opening import Caller
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gating.gate import Gate
from expertmesh_worker.providers import provider
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import ExpertName, Residents
from models.made_experts import reference, store_expert
from rigs.expert_planes import follow, soon
from rigs.expert_worker import ExpertWorker

MODEL, EXPERTS, HIDDEN = "m", 4, 33
SHAPE = ExpertShape(HIDDEN, 16, "fp32")
CONFIG = GateConfig(
    scorer="softmax", picker="top_k", max_k=2, weighting="normalised", weights=Blob(digest="0" * 64, size_bytes=1)
)


@pytest.fixture
def worker(tmp_path):
    lanes = Lanes(1)
    residents = Residents(10**9, provider("cpu"), lanes)
    for index in range(EXPERTS):
        path, blob = store_expert(tmp_path, SHAPE, index)
        residents.load(ExpertName(MODEL, 0, index), SHAPE, path, blob.digest)
    running = ExpertWorker(Runtime(residents, lanes), "w0")
    yield running
    running.stop(0.1)


@pytest.fixture
def plane(worker):
    gate = Gate(CONFIG, {"router": np.eye(HIDDEN, EXPERTS, dtype=np.float32), "bias": np.zeros(EXPERTS, np.float32)})
    experts = tuple(Expert(index=e, width=SHAPE.width, frequency=0.5, blobs={}) for e in range(EXPERTS))
    layer = Layer(index=0, kind="moe", gate=CONFIG, shared_width=0, total_width=EXPERTS * SHAPE.width, experts=experts)
    made = ExpertPlane(MODEL, [layer], [gate], LinkPool(Caller("g", transport="unix")))
    instances = tuple(InstanceRoute(MODEL, 0, e, "w0", "fp32") for e in range(EXPERTS))
    follow(made, RouteTable(Epoch(1, 1), (worker.route,), instances))
    yield made, gate
    made.close()


def test_single_rows_of_an_odd_size_are_answered_again_and_again(plane):
    made, gate = plane
    for seed in range(3):
        row = np.random.default_rng(seed).standard_normal((1, HIDDEN)).astype(np.float32)
        routing = gate.route(row)
        pairs = zip(routing.expert.tolist(), routing.weight.tolist(), strict=True)
        expected = sum(weight * reference(SHAPE, expert, row) for expert, weight in pairs)

        found = made.run(0, row, soon())

        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
