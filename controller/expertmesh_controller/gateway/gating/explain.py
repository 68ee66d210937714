"""Why a row went where it went: scores, picks and how near each was to the other answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expertmesh_controller.gateway.gating.pickers import Mask

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """`score`, `weight` and `margin` float32, `picked` bool, all [T, experts]; the weight of an unpicked expert is 0.

    `margin` is how far what the picker saw (the score and its correction) is from the decision: positive where the
    expert was picked, -inf where it could not be, by a filter or its group.
    """

    rule: str
    score: Floats
    picked: Mask
    weight: Floats
    margin: Floats


def margins(scores: Floats, picked: Mask, threshold: float | None) -> Floats:
    """Distance of every score [T, experts] to the decision boundary of its row.

    That is the threshold where it alone decided, otherwise (a fixed or clipped number of experts) the best unpicked
    score for a picked expert and the worst picked score for the others; infinite where a row has no such other.
    """
    best_unpicked = np.max(np.where(picked, -np.inf, scores), axis=1, keepdims=True, initial=-np.inf)
    worst_picked = np.min(np.where(picked, scores, np.inf), axis=1, keepdims=True, initial=np.inf)
    margin = scores - np.where(picked, best_unpicked, worst_picked)
    if threshold is not None:
        by_threshold = (picked == (scores >= threshold)).all(axis=1, keepdims=True)
        margin = np.where(by_threshold, scores - np.float32(threshold), margin)
    return np.asarray(margin, np.float32)
