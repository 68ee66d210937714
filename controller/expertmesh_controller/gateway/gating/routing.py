"""What gating decided: which experts every row goes to, as pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Pairs sorted by row, then expert: row `row[p]` of `tokens` goes to `expert[p]` with `weight[p]`.

    `row` int32 [n], `expert` int32 [n], `weight` float32 [n]. Arrays are read-only by convention: a gate may hand out
    the same routing again, and a routing is its own identity as a key. `recurs` says that it will: what follows from
    it is worth remembering.
    """

    tokens: int
    row: NDArray[np.int32]
    expert: NDArray[np.int32]
    weight: NDArray[np.float32]
    recurs: bool = False

    @property
    def pairs(self) -> int:
        return self.row.size
