"""Combine: the workers' partial sums back to one row per input row.

Order of summation: a worker sums its experts of a row in ascending expert number, and the partial sums are added in
ascending worker number (workers are numbered by id), whichever answered first. Pairs that were retried elsewhere are
added after those of the first round, in the same order. So results depend on placement, never on timing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Part = tuple[NDArray[np.intp] | None, Floats]
"""Rows that a partial sum is for (None: all), and the sum float32 [m, hidden]."""


def combine(parts: Iterable[Part], shape: tuple[int, int], onto: Floats | None) -> Floats | None:
    """Add `parts` in their order to `onto` float32 [T, hidden], in place; None stands for zeros of `shape`."""
    for index, rows in parts:
        if onto is None:
            if index is None:
                onto = rows.copy()  # the part lies in a receive buffer
                continue
            onto = np.zeros(shape, np.float32)
        if index is None:
            onto += rows
        else:
            onto[index] += rows  # indices are distinct, so nothing is lost
    return onto
