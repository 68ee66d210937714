"""What the dispatch plane counted, cheaply enough for the hot path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expertmesh_controller.gateway.gating.routing import Routing


@dataclass(frozen=True, slots=True)
class Traffic:
    """Totals since the start, over all remote links that are or were up."""

    bytes_sent: int
    bytes_received: int
    frames: int


class Counters:
    """Rows per expert, and the routed neurons of the last run. `widths[layer][expert]` are expert widths in neurons."""

    def __init__(self, widths: Sequence[Sequence[int]]) -> None:
        self._widths = tuple(np.array(w, np.int32) for w in widths)
        self._rows = tuple(np.zeros(len(w), np.int64) for w in widths)
        self._last: tuple[int, Routing] | None = None
        self.frames = 0
        self.retried_pairs = 0

    def note(self, layer: int, routing: Routing) -> None:
        """Count one run."""
        counts = self._rows[layer]
        counts += np.bincount(routing.expert, minlength=counts.size)
        self._last = (layer, routing)

    @property
    def last_active(self) -> NDArray[np.int32]:
        """Routed neurons int32 [T] of every row of the last run."""
        if self._last is None:
            return np.zeros(0, np.int32)
        layer, routing = self._last
        neurons = self._widths[layer][routing.expert]
        return np.bincount(routing.row, neurons, routing.tokens).astype(np.int32)

    def rows(self) -> dict[tuple[int, int], int]:
        """Rows sent to each (layer, expert) since the start; experts without any are left out."""
        return {
            (layer, int(index)): int(counts[index])
            for layer, counts in enumerate(self._rows)
            for index in np.flatnonzero(counts)
        }
