"""One step through a model that is one graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expertmesh_common.bundle.manifest import Layer
from expertmesh_common.errors import Precondition
from expertmesh_common.observability.pulse import Pulse
from expertmesh_controller.gateway.batching.picks import picks_of
from expertmesh_controller.gateway.batching.tapping import ChunkTap
from expertmesh_controller.gateway.trunk.executor import Floats, Work
from expertmesh_controller.gateway.trunk.fused import FusedTrunk

__all__ = ["FusedForward"]


class FusedForward:
    """Runs steps; `picks` knows from the gates' scores which experts they went through."""

    def __init__(self, trunk: FusedTrunk, layers: Sequence[Layer]) -> None:
        self._trunk = trunk
        self.picks = picks_of(layers)
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
        scores = self._trunk.scores()
        self.active = np.ones(work.rows) if scores is None else self.picks.take(scores)
        return logits
