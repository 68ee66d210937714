"""Rows that are no numbers stay with the request they belong to.

A row with NaN or infinite values has no routing, and a worker refuses the frame it comes in, with every other row in
it. So such rows never travel: they go on as NaN, and sampling fails the one request whose logits they reach.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def broken_rows(rows: Floats) -> NDArray[np.bool_] | None:
    """Which of `rows` float32 [T, hidden] hold values that are not finite, bool [T]; None when all are sound."""
    flat = rows.reshape(-1)
    # One product over everything, without a temporary array. Huge, but finite rows overflow it and get a closer look.
    with np.errstate(over="ignore"):
        if math.isfinite(flat.dot(flat)):
            return None
    broken = np.logical_not(np.isfinite(rows).all(axis=1, keepdims=True))[:, 0]
    return broken if broken.any() else None


def without(rows: Floats, broken: NDArray[np.bool_]) -> Floats:
    """A copy of `rows` with zeros in place of the broken ones."""
    sound = rows.copy()
    sound[broken] = 0
    return sound
