"""Weightings: the gate weight of every picked pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle import manifest
from expertmesh_controller.gateway.gating.pickers import Mask
from expertmesh_controller.gateway.gating.scorers import sigmoid, softmax

Floats = NDArray[np.float32]


class Weighting(Protocol):
    """Scores to weights, before `scale`."""

    @property
    def by_choice(self) -> bool:
        """Whether weights follow from the picked set alone, so that a routing may be handed out again."""
        ...

    def __call__(self, scores: Floats, picked: Mask, allowed: Mask | None) -> Floats:
        """Scores [T, E], picked bool [T, E], allowed bool [E] or None -> float32 [T, E]; only those picked count."""
        ...


@dataclass(frozen=True, slots=True)
class OneWeighting:
    """Weight 1: the experts' outputs are summed as they are."""

    by_choice: bool = True

    def __call__(self, scores: Floats, picked: Mask, allowed: Mask | None) -> Floats:  # noqa: ARG002
        return np.broadcast_to(np.float32(1), scores.shape)


@dataclass(frozen=True, slots=True)
class ScoreWeighting:
    """The score itself."""

    by_choice: bool = False

    def __call__(self, scores: Floats, picked: Mask, allowed: Mask | None) -> Floats:  # noqa: ARG002
        return scores


@dataclass(frozen=True, slots=True)
class NormalisedWeighting:
    """The score over the sum of the picked ones; 0 where that sum is 0."""

    by_choice: bool = False

    def __call__(self, scores: Floats, picked: Mask, allowed: Mask | None) -> Floats:  # noqa: ARG002
        kept = np.where(picked, scores, np.float32(0))
        kept /= np.add.reduce(kept, axis=1, keepdims=True, initial=_NO_SUM)
        return kept


@dataclass(frozen=True, slots=True)
class SoftmaxWeighting:
    """The softmax over the picked scores."""

    by_choice: bool = False

    def __call__(self, scores: Floats, picked: Mask, allowed: Mask | None) -> Floats:  # noqa: ARG002
        return softmax(np.where(picked, scores, _NOT))


@dataclass(frozen=True, slots=True)
class SigmoidWeighting:
    """The sigmoid of each picked score."""

    by_choice: bool = False

    def __call__(self, scores: Floats, picked: Mask, allowed: Mask | None) -> Floats:  # noqa: ARG002
        return sigmoid(scores)


@dataclass(frozen=True, slots=True)
class SparseMixer:
    """PhiMoE's weights for two experts (arXiv 2409.12136, without its training noise); they do not sum to 1.

    The best expert's weight is its share among the experts near it, the second's its share among those near it once
    the best is gone. Near means: less than 2 `epsilon` away, relative to the larger of the best score and |score|.
    """

    epsilon: float
    by_choice: bool = False

    def __call__(self, scores: Floats, picked: Mask, allowed: Mask | None) -> Floats:  # noqa: ARG002
        scores = scores if allowed is None else np.where(allowed, scores, _NOT)
        every, first = np.arange(len(scores)), scores.argmax(axis=1)
        rest = scores.copy()
        rest[every, first] = _NOT
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is near; a row without a second has no rest
            best, weights = self._shares(scores, scores), self._shares(rest, scores)
        weights[every, first] = best[every, first]
        return weights

    def _shares(self, candidates: Floats, scores: Floats) -> Floats:
        """The softmax of `candidates` that are near the best of them; `scores` are those of all experts."""
        peak = candidates.max(axis=1, keepdims=True)
        far = (peak - scores) / np.maximum(np.abs(scores), peak) > 2 * self.epsilon
        return softmax(np.where(far, _NOT, candidates))


_NOT = np.float32(-np.inf)
_NO_SUM = np.float32(1e-20)  # changes no sum of scores that is one, and makes 0 of 0/0

WEIGHTINGS: Final[Mapping[str, Callable[[manifest.Gate], Weighting]]] = {
    "one": lambda _: OneWeighting(),
    "score": lambda _: ScoreWeighting(),
    "normalised": lambda _: NormalisedWeighting(),
    "softmax": lambda _: SoftmaxWeighting(),
    "sigmoid": lambda _: SigmoidWeighting(),
    "sparse-mixer": lambda gate: SparseMixer(gate.epsilon),
}
