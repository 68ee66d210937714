"""What the dispatch plane counted, cheaply enough for the hot path."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expertmesh_controller.gateway.gating.routing import Routing

MAX_REMEMBERED = 16384


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
        self._recurring: dict[tuple[int, Routing], int] = {}  # runs that are not in `_rows` yet
        self._neurons: dict[tuple[int, Routing], NDArray[np.int32]] = {}
        self._fold = threading.Lock()
        self.frames = 0
        self.retried_pairs = 0

    def note(self, layer: int, routing: Routing) -> None:
        """Count one run."""
        run = self._last = (layer, routing)
        if routing.recurs:
            self._recurring[run] = self._recurring.get(run, 0) + 1
            if len(self._recurring) >= MAX_REMEMBERED:
                self._fold_in()
            return
        counts = self._rows[layer]
        counts += np.bincount(routing.expert, minlength=counts.size)

    @property
    def last_active(self) -> NDArray[np.int32]:
        """Routed neurons int32 [T] of every row of the last run."""
        if self._last is None:
            return np.zeros(0, np.int32)
        found = self._neurons.get(self._last)
        return self._count_neurons(*self._last) if found is None else found

    def _count_neurons(self, layer: int, routing: Routing) -> NDArray[np.int32]:
        neurons = self._widths[layer][routing.expert]
        found = np.bincount(routing.row, neurons, routing.tokens).astype(np.int32)
        if routing.recurs:
            if len(self._neurons) >= MAX_REMEMBERED:
                self._neurons.clear()
            self._neurons[layer, routing] = found
        return found

    def _fold_in(self) -> None:
        with self._fold:
            for (layer, routing), times in self._recurring.items():
                self._rows[layer][routing.expert] += times  # of one row, so its experts are distinct
            self._recurring = {}

    def rows(self) -> dict[tuple[int, int], int]:
        """Rows sent to each (layer, expert) since the start; experts without any are left out."""
        with self._fold:
            totals = [counts.copy() for counts in self._rows]
            recurring = self._recurring.copy()  # in one step of the interpreter: the engine goes on counting
        for (layer, routing), times in recurring.items():
            totals[layer][routing.expert] += times
        return {
            (layer, int(index)): int(counts[index])
            for layer, counts in enumerate(totals)
            for index in np.flatnonzero(counts)
        }
