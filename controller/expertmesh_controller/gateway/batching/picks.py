"""Which experts the gates inside a trunk's graphs picked, from the scores they hand out: for counters and shares.

Decoding must not wait for it: what the shares of a row need is computed at once, the rest in other threads, when
somebody asks or when enough has come together for one pass.
"""

from __future__ import annotations

import itertools
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle.manifest import Layer
from expertmesh_controller.gateway.neuron_shares import expert_shares
from expertmesh_controller.gateway.trunk.executor import Floats

__all__ = ["Picks", "picks_of"]

FOLD_ROWS = 256


def picks_of(layers: Sequence[Layer], held: Collection[int], base: float = 0.0) -> Picks | None:
    """The reader of the scores of the layers `held`, whose gates are of one kind; None if none of them is routed.

    `base` is the share of neurons that every row goes through beside what it picks.
    """
    shares = dict(zip((layer.index for layer in layers), expert_shares(layers), strict=True))
    routed = [layer for layer in layers if layer.gate is not None and layer.index in held]
    if not routed:
        return None
    thresholds = routed[0].gate is not None and routed[0].gate.picker == "threshold"
    held_shares = np.array([shares[layer.index] for layer in routed], np.float64)
    return (_Thresholds if thresholds else _TopK)(routed, held_shares, base)


class Picks(ABC):
    """Scores come as float32 [rows, routed layers, columns]; experts are the first columns.

    `shares` float64 [routed layers, experts] is what each expert is of the model's feed-forward. One thread takes and
    one folds; `rows` may be asked for by any.
    """

    def __init__(self, routed: Sequence[Layer], shares: NDArray[np.float64], base: float) -> None:
        self.layers = tuple(layer.index for layer in routed)
        self.experts = len(routed[0].experts)
        self._shares, self._base = shares, base
        self._rows = np.zeros(shares.shape, np.int64)

    @abstractmethod
    def take(self, scores: Floats) -> NDArray[np.float64]:
        """Count a step; returns the share of feed-forward neurons that each row went through, float64 [rows]."""

    @abstractmethod
    def fold(self) -> None:
        """Count some of what `take` left for later, if it is much. Call it after every step, beside the next one."""

    def rows(self) -> dict[tuple[int, int], int]:
        """Rows of each (layer, expert) since the start; experts without any are left out."""
        counts = self._counted()
        return {
            (self.layers[at], int(expert)): int(counts[at, expert])
            for at in range(len(self.layers))
            for expert in np.flatnonzero(counts[at])
        }

    def _counted(self) -> NDArray[np.int64]:
        return self._rows


class _Thresholds(Picks):
    def __init__(self, routed: Sequence[Layer], shares: NDArray[np.float64], base: float) -> None:
        super().__init__(routed, shares, base)
        found = [layer.gate.threshold for layer in routed if layer.gate is not None]
        self._thresholds = np.array(found, np.float32)[:, np.newaxis]

    def take(self, scores: Floats) -> NDArray[np.float64]:
        picked = scores[:, :, : self.experts] >= self._thresholds
        self._rows += picked.sum(axis=0)
        shares: NDArray[np.float64] = picked.reshape(len(picked), -1) @ self._shares.ravel()
        shares += self._base
        return shares

    def fold(self) -> None:
        """Nothing waits: the shares need what the counts need."""


class _TopK(Picks):
    """Every row goes through as many neurons, so scores may wait until there are enough of them."""

    def __init__(self, routed: Sequence[Layer], shares: NDArray[np.float64], base: float) -> None:
        super().__init__(routed, shares, base)
        (self._k,) = {layer.gate.max_k for layer in routed if layer.gate is not None}
        self._share = base + min(self._k, self.experts) * float(shares[:, 0].sum())
        self._same: dict[int, NDArray[np.float64]] = {}
        # Rows that are counted and scores that wait change together: whoever asks meanwhile sees no row twice or never.
        self._lock = threading.Lock()
        self._waiting: list[Floats] = []

    def take(self, scores: Floats) -> NDArray[np.float64]:
        rows = len(scores)
        waits = scores[:, :, : self.experts].copy()
        with self._lock:
            self._waiting.append(waits)
        shares = self._same.get(rows)
        if shares is None:
            shares = self._same[rows] = np.full(rows, self._share)
        return shares

    def fold(self) -> None:
        _, waiting = self._taken()
        ends = list(itertools.accumulate(map(len, waiting)))
        if not ends or ends[-1] < FOLD_ROWS:
            return
        del waiting[bisect_left(ends, FOLD_ROWS) + 1 :]  # a pass takes milliseconds: whoever calls has more to do
        counted = self._count(waiting)  # outside the lock: `take` does not wait for it
        with self._lock:
            self._rows = self._rows + counted
            del self._waiting[: len(waiting)]

    def _counted(self) -> NDArray[np.int64]:
        rows, waiting = self._taken()
        return rows + self._count(waiting) if waiting else rows

    def _taken(self) -> tuple[NDArray[np.int64], list[Floats]]:
        """(rows that are counted, scores that wait), as they were at one moment."""
        with self._lock:
            return self._rows, list(self._waiting)

    def _count(self, waiting: Sequence[Floats]) -> NDArray[np.int64]:
        scores = np.concatenate(waiting)
        if self._k >= self.experts:
            return np.full(self._rows.shape, len(scores), np.int64)
        best = np.argpartition(-scores, self._k - 1, axis=2)[:, :, : self._k]
        at = best + self.experts * np.arange(len(self.layers))[:, np.newaxis]
        return np.bincount(at.ravel(), minlength=self._rows.size).reshape(self._rows.shape)
