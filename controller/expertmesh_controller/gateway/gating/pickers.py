"""Pickers: scores to a mask of picked experts. Ties go to the lower index; thresholds and k are data of the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle import manifest

Mask = NDArray[np.bool_]


class Picker(Protocol):
    """Decides which experts a row goes to."""

    @property
    def threshold(self) -> float | None:
        """The score that decides, where one does."""
        ...

    def __call__(self, scores: NDArray[np.float32]) -> Mask:
        """Scores float32 [T, E], -inf for an expert that must not be picked -> picked bool [T, E], a new array."""
        ...

    def rule(self, experts: int) -> str:
        """One line for a person."""
        ...


class ThresholdPicker:
    """Every expert with score >= `threshold`, but at least `min_k` (best first) and at most `max_k`."""

    def __init__(self, gate: manifest.Gate) -> None:
        assert gate.threshold is not None, "checked when the manifest was read"
        self.threshold = float(np.float32(max(gate.threshold, _LEAST)))  # what -inf marks is below any threshold
        self._min_k, self._max_k = gate.min_k, gate.max_k

    def __call__(self, scores: NDArray[np.float32]) -> Mask:
        picked: Mask = scores >= self.threshold
        if self._min_k == 0 and self._max_k >= scores.shape[1]:
            return picked
        counts = np.count_nonzero(picked, axis=1)
        wanted = np.clip(counts, self._min_k, self._max_k)
        off = np.flatnonzero(wanted != counts)
        if off.size:
            picked[off] = _best(scores[off], wanted[off])
        return picked

    def rule(self, experts: int) -> str:
        return f"threshold {self.threshold:.6g}, at least {self._min_k}, at most {self._max_k} of {experts}"


class TopKPicker:
    """The best `max_k` experts."""

    def __init__(self, gate: manifest.Gate) -> None:
        self.threshold = None
        self._k = gate.max_k

    def __call__(self, scores: NDArray[np.float32]) -> Mask:
        return top_k(scores, self._k)

    def rule(self, experts: int) -> str:
        return f"the best {min(self._k, experts)} of {experts}"


def top_k(scores: NDArray[np.float32], k: int) -> Mask:
    """The `k` best of every row of scores [T, n], ties to the lower index; -inf is never among them."""
    picked: Mask = np.zeros(scores.shape, np.bool_)
    if k == 1 and picked.size:
        best = scores.argmax(axis=1)[:, np.newaxis]
    else:
        best = (-scores).argsort(axis=1, kind="stable")[:, :k]
    picked[np.arange(len(scores))[:, np.newaxis], best] = True
    picked &= scores != -np.inf
    return picked


def _best(scores: NDArray[np.float32], wanted: NDArray[np.intp]) -> Mask:
    """As `top_k`, with `wanted[t]` experts for row t."""
    order = (-scores).argsort(axis=1, kind="stable")
    picked: Mask = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(picked, order, np.arange(scores.shape[1]) < wanted[:, None], axis=1)
    picked &= scores != -np.inf
    return picked


_LEAST = float(np.finfo(np.float32).min)

PICKERS: Final[Mapping[str, type[ThresholdPicker | TopKPicker]]] = {
    "threshold": ThresholdPicker,
    "top_k": TopKPicker,
}
