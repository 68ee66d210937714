"""One step through the model: trunk segment, experts, trunk segment, ... head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle.manifest import Layer
from expertmesh_common.observability.pulse import Pulse
from expertmesh_controller.gateway.batching.tapping import ChunkTap
from expertmesh_controller.gateway.trunk.executor import Floats, TrunkExecutor, Work

__all__ = ["Experts", "Forward", "Steps"]


class Experts(Protocol):
    """The routed experts, wherever they are."""

    @property
    def last_active(self) -> NDArray[np.int32]:
        """Routed neurons that each row of the last call went through, int32 [T]."""
        ...

    def run(self, layer: int, rows: Floats, deadline: float, patience_s: float) -> Floats:
        """The sum of the routed experts of each row of `rows` float32 [T, hidden], same shape.

        Slow experts may take until `deadline`; experts that nobody serves are waited for `patience_s` seconds.

        Raises:
            Unavailable: an expert has no live instance.
            DeadlinePassed: monotonic time reached `deadline`.

        """
        ...


class Steps(Protocol):
    """A way to run one step of the whole model."""

    active: NDArray[np.float64]
    tap: ChunkTap | None
    pulse: Pulse

    def run(self, work: Work, deadline: float) -> Floats:
        """Logits float32 [work.logit_rows, vocabulary]; `active` is then the share of neurons of each row."""
        ...


class Forward:
    """Runs steps. A failed step leaves nothing behind that running it again would not write again.

    `patience_s` bounds each wait for experts of one layer that nobody serves, so that the caller can look around and
    try again. It bounds no expert call: a slow board may take until the deadline.
    """

    def __init__(self, trunk: TrunkExecutor, experts: Experts, layers: Sequence[Layer], patience_s: float) -> None:
        self._trunk, self._experts, self._patience_s = trunk, experts, patience_s
        self._neuron_shares = [1.0 / (layer.total_width * len(layers)) for layer in layers]
        self._shared_share = float(np.mean([layer.shared_width / layer.total_width for layer in layers]))
        self.active = np.zeros(0)
        self.tap: ChunkTap | None = None
        self.pulse = Pulse()

    def run(self, work: Work, deadline: float) -> Floats:
        """Logits float32 [work.logit_rows, vocabulary]; `active` is then the share of neurons of each row, [work.rows].

        Raises:
            Unavailable, DeadlinePassed: from the experts; the step may be run again.

        """
        self.active = np.full(work.rows, self._shared_share)
        combined = self._experts_of(0, self._trunk.begin(work), deadline)
        for layer in range(1, self._trunk.limits.layers):
            combined = self._experts_of(layer, self._trunk.advance(layer, combined), deadline)
        return self._trunk.finish(combined)

    def _experts_of(self, layer: int, rows: Floats, deadline: float) -> Floats:
        self.pulse.beat()
        if self.tap is not None:
            self.tap.rows(layer, rows)
        combined = self._experts.run(layer, rows, deadline, self._patience_s)
        self.active += self._experts.last_active * self._neuron_shares[layer]
        return combined
