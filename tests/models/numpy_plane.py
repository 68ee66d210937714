"""An expert plane without workers: a tiny bundle's routed experts in numpy, each row on its own."""

import threading
import time

import numpy as np

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.tensors import read_tensors
from expertmesh_controller.cluster.routes import RouteTable
from expertmesh_controller.gateway.neuron_shares import neuron_shares
from models import tiny_bundle as tiny


class NumpyPlane:
    """Answers like the real plane. `failures` are raised, one per call, before anything is computed."""

    def __init__(self, bundle: Bundle, precision: str = "fp32") -> None:
        self.bundle, self.precision = bundle, precision
        self.active = np.zeros(0)
        self._shares = neuron_shares(bundle.manifest.layers)
        self.failures: list[Exception] = []
        self.fail_at_layer = 0
        self.calls: list[tuple[int, int]] = []  # (layer, rows)
        self.delay_s = 0.0
        self.gates = [read_tensors(bundle.path(layer.gate.weights)) for layer in bundle.manifest.layers]
        self.experts = [
            [tiny._read(bundle, expert.blobs[precision], precision) for expert in layer.experts]
            for layer in bundle.manifest.layers
        ]

        self.tables: list[RouteTable] = []
        self.suspects: tuple[str, ...] = ()
        self.counters = self

    def update(self, table: RouteTable) -> None:
        self.tables.append(table)

    def take_suspects(self) -> tuple[str, ...]:
        taken, self.suspects = self.suspects, ()
        return taken

    def rows(self) -> dict[tuple[int, int], int]:
        return {(layer, 0): sum(n for at, n in self.calls if at == layer) for layer in {at for at, _ in self.calls}}

    def begin(self, rows: int, share: float = 0.0) -> None:
        self.active = np.full(rows, share)

    def run(self, layer: int, rows: np.ndarray, deadline: float, patience_s: float = np.inf) -> np.ndarray:
        self.calls.append((layer, len(rows)))
        if self.failures and layer == self.fail_at_layer:
            raise self.failures.pop(0)
        time.sleep(self.delay_s)
        gate = self.gates[layer]
        picked = np.stack([row @ gate["router"] for row in rows]) + gate["bias"] >= tiny.THRESHOLD
        if len(self.active) != len(rows):  # asked outside of a step
            self.begin(len(rows))
        self.active = self.active + (picked * tiny.EXPERT_WIDTH).sum(1) * self._shares[layer]
        total = np.zeros_like(rows)
        for index, tensors in enumerate(self.experts[layer]):
            for row in np.flatnonzero(picked[:, index]):
                total[row] += tiny._swiglu(rows[row], tensors["gate_up"], tensors["down"])
        return total


class HeldPlane(NumpyPlane):
    """Says when a step has reached its experts, and lets it go on when told."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.entered, self.let_go = threading.Event(), threading.Event()

    def run(self, *arguments):
        self.entered.set()
        self.let_go.wait(30)
        return super().run(*arguments)
