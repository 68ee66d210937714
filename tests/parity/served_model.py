"""A bundle served in this process as a mesh serves it: the gateway's own parts, experts split over two runtimes."""

from __future__ import annotations

import time

import numpy as np

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.graphs.expert import ExpertShape
from expertmesh_controller.cluster.routes import Epoch, InstanceRoute, RouteTable, WorkerRoute
from expertmesh_controller.gateway.batching.forward import Forward
from expertmesh_controller.gateway.dispatch.links.opening import Caller
from expertmesh_controller.gateway.dispatch.links.pool import LinkPool
from expertmesh_controller.gateway.dispatch.plane import ExpertPlane
from expertmesh_controller.gateway.gating.gate import load_gates
from expertmesh_controller.gateway.trunk.executor import Chunk, Work
from expertmesh_controller.gateway.trunk.local import LocalTrunk
from expertmesh_worker.providers import provider
from expertmesh_worker.runtime.executing import Runtime
from expertmesh_worker.runtime.lanes import Lanes
from expertmesh_worker.runtime.residents import ExpertName, Residents

WORKERS = ("w0", "w1")
_NONE = np.empty(0, np.int64), np.empty(0, np.int32)


class ServedModel:
    """Logits of every position. Worker 0 holds the even experts, worker 1 the odd ones.

    Experts of layers that are not among `stops` (None: all are) run in the trunk's graphs.
    """

    def __init__(
        self, bundle: Bundle, precision: str = "fp32", context_tokens: int = 96, *, stops: tuple[int, ...] | None = None
    ) -> None:
        manifest = bundle.manifest
        hosts = {worker: _runtime(bundle, precision, number) for number, worker in enumerate(WORKERS)}
        self._plane = ExpertPlane(
            manifest.name, manifest.layers, load_gates(bundle), LinkPool(Caller("g1"), local=hosts)
        )
        instances = tuple(
            InstanceRoute(manifest.name, layer.index, expert.index, WORKERS[expert.index % 2], precision)
            for layer in manifest.layers
            for expert in layer.experts
        )
        workers = tuple(WorkerRoute(worker, "1", (), "h", 1.0) for worker in WORKERS)
        self._plane.update(RouteTable(Epoch(1, 1), workers, instances))
        sizes = {"slots": 2, "context_tokens": context_tokens, "chunk_tokens": 64}
        self._trunk = LocalTrunk(bundle, precision, stops=stops, **sizes)
        self._forward = Forward(self._trunk, self._plane, manifest.layers, 10)

    def prompt_logits(self, ids: list[int]) -> np.ndarray:
        """float32 [tokens, vocabulary]; the prompt goes in as two chunks, as a long one would."""
        middle = len(ids) // 2
        first = self._chunk(0, ids[:middle], ends=False)
        return np.concatenate([first, self._chunk(middle, ids[middle:], ends=True)])

    def next_logits(self, token: int, cached: int) -> np.ndarray:
        """float32 [vocabulary] after one more token; `cached` tokens came before it."""
        work = Work(np.array([token], np.int64), np.array([cached], np.int32))
        return self._forward.run(work, time.monotonic() + 30)[0].copy()

    def close(self) -> None:
        self._plane.close()

    def _chunk(self, start: int, ids: list[int], *, ends: bool) -> np.ndarray:
        work = Work(*_NONE, Chunk(0, start, np.array(ids, np.int64), ends))
        self._forward.run(work, time.monotonic() + 30)
        return np.concatenate([self._trunk.chunk_logits(at, 1).copy() for at in range(len(ids))])


def _runtime(bundle: Bundle, precision: str, number: int) -> Runtime:
    manifest, lanes = bundle.manifest, Lanes(1)
    residents = Residents(1 << 30, provider("cpu"), lanes)
    for layer in manifest.layers:
        for expert in layer.experts[number::2]:
            shape = ExpertShape(manifest.trunk.hidden, expert.width, precision, manifest.trunk.activation)
            blob = expert.blobs[precision]
            name = ExpertName(manifest.name, layer.index, expert.index)
            residents.load(name, shape, bundle.path(blob), blob.digest)
    return Runtime(residents, lanes)
