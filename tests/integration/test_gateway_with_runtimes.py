"""The engine over the real plane and two real worker runtimes in this process: a tiny model, every expert in ONNX."""

import time
from pathlib import Path

import numpy as np
import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.clock import SystemClock
from expertmesh_common.graphs.expert import ExpertShape
from expertmesh_controller.cluster.routes import Epoch, InstanceRoute, RouteTable, WorkerRoute
from expertmesh_controller.gateway.batching.engine import Engine
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.batching.jobs import Ended, Picked, Request, Ticket
from expertmesh_controller.gateway.dispatch.links.opening import Caller
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gating.gate import load_gates
from expertmesh_controller.gateway.trunk.local import LocalTrunk
from expertmesh_worker.providers import provider
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import ExpertName, Residents
from models import tiny_bundle as tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny")))


def runtime(bundle: Bundle, precision: str, indices: range) -> Runtime:
    """A worker that holds experts `indices` of every layer."""
    lanes = Lanes(1)
    residents = Residents(1 << 30, provider("cpu"), lanes)
    shape = ExpertShape(tiny.HIDDEN, tiny.EXPERT_WIDTH, precision)
    for layer in bundle.manifest.layers:
        for index in indices:
            blob = layer.experts[index].blobs[precision]
            residents.load(ExpertName("tiny", layer.index, index), shape, Path(bundle.path(blob)), blob.digest)
    return Runtime(residents, lanes)


class Mesh:
    """An engine whose experts are spread over two runtimes."""

    def __init__(self, bundle: Bundle, precision: str) -> None:
        held = {"w1": range(2), "w2": range(2, 4)}
        hosts = {worker: runtime(bundle, precision, indices) for worker, indices in held.items()}
        layers = bundle.manifest.layers
        pool = LinkPool(Caller("g1"), local=hosts)
        self.plane = ExpertPlane("tiny", layers, load_gates(bundle), pool)
        workers = tuple(WorkerRoute(worker, "1", (), "h", 1.0) for worker in held)
        instances = tuple(
            InstanceRoute("tiny", layer.index, index, worker, precision)
            for worker, indices in held.items()
            for layer in layers
            for index in indices
        )
        self.plane.update(RouteTable(Epoch(1, 1), workers, instances))
        trunk = LocalTrunk(bundle, precision, slots=4, context_tokens=128, chunk_tokens=16)
        clock = SystemClock()
        self.engine = Engine(trunk, Forward(trunk, self.plane, layers, 10), clock, queue_limit=8)

    def submit(self, prompt: list[int], count: int) -> Ticket:
        return self.engine.submit(Request(tuple(prompt), count, SystemClock().monotonic() + 60))


async def ids_of(ticket: Ticket) -> list[int]:
    ids = []
    while not isinstance(event := await ticket.events.get(), Ended):
        assert isinstance(event, Picked), event
        ids.append(event.choice.token_id)
    return ids


async def test_a_batch_over_two_runtimes_gives_the_references_tokens(bundle: Bundle) -> None:
    mesh = Mesh(bundle, "fp32")
    mesh.engine.start()
    prompts = [[1, 2, 3], list(range(50)), [9], list(range(60, 80)), [200, 201]]
    tickets = [mesh.submit(prompt, 12) for prompt in prompts]
    got = [await ids_of(ticket) for ticket in tickets]
    await mesh.engine.stop()
    mesh.plane.close()
    assert got == [tiny.greedy_ids(bundle, prompt, 12) for prompt in prompts]


async def test_at_int4_the_same_prompt_gives_the_same_tokens_again(bundle: Bundle) -> None:
    mesh = Mesh(bundle, "int4")
    mesh.engine.start()
    first = await ids_of(mesh.submit(list(range(30)), 10))
    again = await ids_of(mesh.submit(list(range(30)), 10))
    await mesh.engine.stop()
    mesh.plane.close()
    assert first == again
    assert len(set(first)) > 1


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_no_number_stays_alone(bundle: Bundle, precision: str, bad: float) -> None:
    mesh = Mesh(bundle, precision)
    rows = np.random.default_rng(0).standard_normal((5, tiny.HIDDEN)).astype(np.float32)
    sound = mesh.plane.run(0, rows, time.monotonic() + 10)

    rows[3, 7] = bad
    out = mesh.plane.run(0, rows, time.monotonic() + 10)
    alone = mesh.plane.run(0, rows[3:4], time.monotonic() + 10)

    mesh.plane.close()
    assert np.isnan(out[3]).all()
    assert np.isnan(alone).all()
    np.testing.assert_array_equal(np.delete(out, 3, axis=0), np.delete(sound, 3, axis=0))


def test_a_huge_row_is_still_a_number(bundle: Bundle) -> None:
    mesh = Mesh(bundle, "fp32")
    rows = np.full((2, tiny.HIDDEN), 1e25, np.float32)
    rows[1] = 1.0

    out = mesh.plane.run(0, rows, time.monotonic() + 10)

    mesh.plane.close()
    assert np.isfinite(out[1]).all()
