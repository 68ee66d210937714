"""What the dispatch plane counted, cheaply enough for the hot path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expertmesh_controller.gateway.gating.routing import Routing, RowRouting


@dataclass(frozen=True, slots=True)
class Traffic:
    """Totals since the start, over all remote links that are or were up."""

    bytes_sent: int
    bytes_received: int
    frames: int


class Counters:
    """Rows per expert, and the share of all neurons that the rows of a step went through.

    `shares[layer][expert]` is what an expert is of the model's neurons. Used by one thread; any may ask for `rows`.
    """

    def __init__(self, shares: Sequence[Sequence[float]]) -> None:
        self._shares = tuple(np.array(s, np.float64) for s in shares)
        self._row_shares = tuple(tuple(s) for s in shares)
        self._rows = tuple(np.zeros(len(s), np.int64) for s in shares)
        self._lone_rows = tuple([0] * len(s) for s in shares)  # of runs of one row: numbers that Python adds up
        self._step_rows, self._share = 0, 0.0
        self._active: NDArray[np.float64] | None = None  # what runs of several rows added to the share
        self.frames = 0
        self.retried_pairs = 0

    def begin(self, rows: int, share: float = 0.0) -> None:
        """A step of so many rows begins; each has `share` for a start."""
        self._step_rows, self._share, self._active = rows, share, None

    def note(self, layer: int, routing: Routing | RowRouting) -> None:
        """Count one run of the step."""
        if isinstance(routing, RowRouting):
            self._note_one(layer, routing.experts)
            return
        counts, shares = self._rows[layer], self._shares[layer]
        counts += np.bincount(routing.expert, minlength=counts.size)
        if self._step_rows != routing.tokens:  # a call outside of any step
            self.begin(routing.tokens)
        active = np.bincount(routing.row, shares[routing.expert], routing.tokens).astype(np.float64, copy=False)
        self._active = active if self._active is None else self._active + active

    @property
    def active(self) -> NDArray[np.float64]:
        """Neurons that each row of the step went through so far, as a share of the model's, a new array [rows]."""
        return np.full(self._step_rows, self._share) if self._active is None else self._active + self._share

    def _note_one(self, layer: int, experts: tuple[int, ...]) -> None:
        counts, shares = self._lone_rows[layer], self._row_shares[layer]
        for expert in experts:
            counts[expert] += 1
            self._share += shares[expert]

    def rows(self) -> dict[tuple[int, int], int]:
        """Rows sent to each (layer, expert) since the start; experts without any are left out."""
        found = (
            (layer, [many + one for many, one in zip(counts.tolist(), lone, strict=True)])
            for layer, (counts, lone) in enumerate(zip(self._rows, self._lone_rows, strict=True))
        )
        return {(layer, index): rows for layer, totals in found for index, rows in enumerate(totals) if rows}
