"""One step through a model that is one graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle.manifest import Layer
from expertmesh_common.errors import Precondition
from expertmesh_common.observability.pulse import Pulse
from expertmesh_controller.gateway.batching.tapping import ChunkTap
from expertmesh_controller.gateway.trunk.executor import Floats, Work
from expertmesh_controller.gateway.trunk.fused import FusedTrunk

__all__ = ["FusedForward"]


class FusedForward:
    """Runs steps, and tells from the gates' scores what they picked.

    `rows` int64 [routed layers, experts] counts the rows of every expert since the start.
    """

    def __init__(self, trunk: FusedTrunk, layers: Sequence[Layer]) -> None:
        self._trunk = trunk
        self._picks = [_Picks(layer) for layer in layers if layer.gate is not None]
        routed = sum(layer.total_width for layer in layers)
        self._shared = sum(layer.shared_width for layer in layers) / routed
        self._neurons = routed
        self.rows = [np.zeros(picks.experts, np.int64) for picks in self._picks]
        self.active = np.zeros(0)
        self.tap: ChunkTap | None = None
        self.pulse = Pulse()

    def run(self, work: Work, deadline: float) -> Floats:  # noqa: ARG002 - nothing is waited for
        """Logits float32 [work.logit_rows, vocabulary]; `active` is then the share of neurons of each row, [work.rows].

        Raises:
            Precondition: someone wants to see rows between layers, which one graph does not show.

        """
        if self.tap is not None:
            raise Precondition("a model served with numerics `fast` cannot be explained: serve it with `exact`")
        self.pulse.beat()
        logits = self._trunk.run(work)
        self._count(self._trunk.scores())
        return logits

    def _count(self, scores: Floats | None) -> None:
        if scores is None:
            self.active = np.ones(0)
            return
        active = np.full(len(scores), self._shared)
        for number, picks in enumerate(self._picks):
            picked = picks(scores[:, number])
            self.rows[number] += picked.sum(axis=0)
            active += picked @ picks.widths / self._neurons
        self.active = active


class _Picks:
    """Which experts a layer's scores pick."""

    def __init__(self, layer: Layer) -> None:
        assert layer.gate is not None, "only routed layers have one"
        self.experts = len(layer.experts)
        self.widths = np.array([expert.width for expert in layer.experts], np.float64)
        self._k = layer.gate.max_k
        self._threshold = layer.gate.threshold if layer.gate.picker == "threshold" else None

    def __call__(self, scores: Floats) -> NDArray[np.bool_]:
        """Scores float32 [rows, columns] -> bool [rows, experts]."""
        scores = scores[:, : self.experts]
        if self._threshold is not None:
            picked: NDArray[np.bool_] = scores >= np.float32(self._threshold)
            return picked
        best = np.argpartition(-scores, self._k - 1, axis=1)[:, : self._k]
        found = np.zeros(scores.shape, np.bool_)
        np.put_along_axis(found, best, True, axis=1)
        return found
