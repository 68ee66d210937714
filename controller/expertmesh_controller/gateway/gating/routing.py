"""What gating decided: which experts every row goes to, as pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Pairs sorted by row, then expert: row `row[p]` of `tokens` goes to `expert[p]` with `weight[p]`.

    `row` int32 [n], `expert` int32 [n], `weight` float32 [n].
    """

    tokens: int
    row: NDArray[np.int32]
    expert: NDArray[np.int32]
    weight: NDArray[np.float32]

    @property
    def pairs(self) -> int:
        return self.row.size

    @property
    def distinct_experts(self) -> list[int]:
        """Ascending."""
        return sorted(set(self.expert.tolist()))


class RowRouting:
    """The same of one row, without arrays: it goes to `experts`, ascending, with as many `weights`.

    Weights become float32 where they are used. A gate may hand out the same routing again: it is its own identity as a
    key, and `recurs` says that what follows from it is worth remembering.
    """

    __slots__ = ("experts", "recurs", "weights")
    tokens = 1

    def __init__(self, experts: tuple[int, ...], weights: tuple[float, ...], recurs: bool = False) -> None:
        self.experts, self.weights, self.recurs = experts, weights, recurs

    @property
    def pairs(self) -> int:
        return len(self.experts)

    @property
    def distinct_experts(self) -> list[int]:
        return list(self.experts)

    @property
    def whole(self) -> Routing:
        """As arrays."""
        experts, weights = np.array(self.experts, np.int32), np.array(self.weights, np.float32)
        return Routing(1, np.zeros(len(experts), np.int32), experts, weights)
