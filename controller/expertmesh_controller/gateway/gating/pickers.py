"""Pickers: scores to a mask of picked experts. Ties go to the lower index; thresholds and k are data of the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle import manifest
from expertmesh_common.errors import InvalidInput

Mask = NDArray[np.bool_]


class Picker(Protocol):
    """Decides which of the allowed experts a row goes to."""

    @property
    def threshold(self) -> float | None:
        """The score that decides, where one does."""
        ...

    def __call__(self, scores: NDArray[np.float32], allowed: Mask | None) -> Mask:
        """Scores float32 [T, E], allowed bool [E] or None for all -> picked bool [T, E], a new array."""
        ...

    def rule(self, experts: int) -> str:
        """One line for a person."""
        ...


class ThresholdPicker:
    """Every expert with score >= `threshold`, but at least `min_k` (best first) and at most `max_k`."""

    def __init__(self, gate: manifest.Gate) -> None:
        if gate.threshold is None:
            raise InvalidInput("picker `threshold` needs a threshold; the bundle's gate has none")
        if gate.min_k > gate.max_k:
            raise InvalidInput(f"picker `threshold` has min_k {gate.min_k} above max_k {gate.max_k}")
        self.threshold = float(np.float32(gate.threshold))
        self._min_k, self._max_k = gate.min_k, gate.max_k

    def __call__(self, scores: NDArray[np.float32], allowed: Mask | None) -> Mask:
        picked: Mask = scores >= self.threshold
        if allowed is not None:
            picked &= allowed
        if self._min_k == 0 and self._max_k >= scores.shape[1]:
            return picked
        counts = np.count_nonzero(picked, axis=1)
        wanted = np.clip(counts, self._min_k, self._max_k)
        off = np.flatnonzero(wanted != counts)
        if off.size:
            picked[off] = best(scores[off], wanted[off], allowed)
        return picked

    def rule(self, experts: int) -> str:
        return f"threshold {self.threshold:.6g}, at least {self._min_k}, at most {self._max_k} of {experts}"


class TopKPicker:
    """The best `max_k` experts."""

    def __init__(self, gate: manifest.Gate) -> None:
        self.threshold = None
        self._k = gate.max_k

    def __call__(self, scores: NDArray[np.float32], allowed: Mask | None) -> Mask:
        return best(scores, np.full(len(scores), self._k), allowed)

    def rule(self, experts: int) -> str:
        return f"the best {min(self._k, experts)} of {experts}"


def best(scores: NDArray[np.float32], wanted: NDArray[np.intp], allowed: Mask | None) -> Mask:
    """The `wanted[t]` best allowed experts of every row t, ties to the lower index."""
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")
    picked = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(picked, order, np.arange(scores.shape[1]) < wanted[:, None], axis=1)
    return picked if allowed is None else picked & allowed


PICKERS: Final[Mapping[str, type[ThresholdPicker | TopKPicker]]] = {
    "threshold": ThresholdPicker,
    "top_k": TopKPicker,
}
