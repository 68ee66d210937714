"""One step through the model: a run of the trunk, experts elsewhere, the next run, ... head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle.manifest import Layer
from expertmesh_common.errors import Precondition
from expertmesh_common.observability.pulse import Pulse
from expertmesh_controller.gateway.batching.picks import picks_of
from expertmesh_controller.gateway.batching.tapping import ChunkTap
from expertmesh_controller.gateway.trunk.executor import Floats, TrunkExecutor, Work

__all__ = ["HIDDEN", "Experts", "Forward"]

HIDDEN = (
    "a model served with numerics `fast` cannot be explained where its gateway holds layers: "
    "serve it with `exact`, or with local_layers `none`"
)


class Experts(Protocol):
    """The routed experts that the trunk does not hold itself."""

    @property
    def active(self) -> NDArray[np.float64]:
        """The share of the model's neurons that each row of the step went through here, a new array [rows]."""
        ...

    def begin(self, rows: int, share: float) -> None:
        """A step of so many rows begins; each has `share` for a start."""
        ...

    def run(self, layer: int, rows: Floats, deadline: float, patience_s: float) -> Floats:
        """The sum of the routed experts of each row of `rows` float32 [T, hidden], same shape.

        Slow experts may take until `deadline`; experts that nobody serves are waited for `patience_s` seconds.

        Raises:
            Unavailable: an expert has no live instance.
            DeadlinePassed: monotonic time reached `deadline`.

        """
        ...


class Forward:
    """Runs steps. A failed step leaves nothing behind that running it again would not write again.

    `patience_s` bounds each wait for experts of one layer that nobody serves, so that the caller can look around and
    try again. It bounds no expert call: a slow board may take until the deadline. `picks` counts rows of the experts
    that the trunk holds; None if it holds none.
    """

    def __init__(self, trunk: TrunkExecutor, experts: Experts, layers: Sequence[Layer], patience_s: float) -> None:
        self._trunk, self._experts, self._patience_s = trunk, experts, patience_s
        shared = float(np.mean([layer.shared_width / layer.total_width for layer in layers]))
        self.picks = picks_of(layers, {layer.index for layer in layers} - set(trunk.stops), shared)
        self._share_before = shared if self.picks is None else 0.0
        self.active = np.zeros(0)
        self.tap: ChunkTap | None = None
        self.pulse = Pulse()

    def run(self, work: Work, deadline: float) -> Floats:
        """Logits float32 [work.logit_rows, vocabulary]; `active` is then the share of neurons of each row, [work.rows].

        Raises:
            Unavailable, DeadlinePassed: from the experts; the step may be run again.
            Precondition: someone wants to see the rows of all layers, and graphs of several do not show them.

        """
        if self.tap is not None and self.picks is not None:
            raise Precondition(HIDDEN)
        self.pulse.beat()
        with np.errstate(over="ignore", invalid="ignore"):  # rows that are no numbers fail where they are sampled from
            logits = self._step(work, deadline)
        self.active = self._shares(work.rows)
        return logits

    def _step(self, work: Work, deadline: float) -> Floats:
        rows, combined = self._trunk.begin(work), None
        self._experts.begin(work.rows, self._share_before)
        for layer in self._trunk.stops:
            if combined is not None:
                rows = self._trunk.advance(layer, combined)
            combined = self._experts_of(layer, rows, deadline)
        return self._trunk.finish(combined)

    def _shares(self, rows: int) -> NDArray[np.float64]:
        """Comes after the step: one that failed on its way runs again, and counts once."""
        if self.picks is None:
            return self._experts.active
        scores = self._trunk.scores()
        if scores is None:
            return np.ones(rows)
        shares = self.picks.take(scores)
        return self._experts.active + shares if self._trunk.stops else shares

    def _experts_of(self, layer: int, rows: Floats, deadline: float) -> Floats:
        self.pulse.beat()
        if self.tap is not None:
            self.tap.rows(layer, rows)
        return self._experts.run(layer, rows, deadline, self._patience_s)
