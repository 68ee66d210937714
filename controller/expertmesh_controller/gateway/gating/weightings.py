"""Weightings: the gate weight of every picked pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Weighting(Protocol):
    """Scores of the picked pairs to their weights."""

    @property
    def by_choice(self) -> bool:
        """Whether weights follow from the picked set alone, so that a routing may be handed out again."""
        ...

    def __call__(self, scores: Floats, row: NDArray[np.intp], expert: NDArray[np.intp]) -> Floats:
        """Scores [T, E] and the pairs' indices [n] -> weights float32 [n]."""
        ...


@dataclass(frozen=True, slots=True)
class OneWeighting:
    """Weight 1: the experts' outputs are summed as they are."""

    by_choice: bool = True

    def __call__(self, scores: Floats, row: NDArray[np.intp], expert: NDArray[np.intp]) -> Floats:  # noqa: ARG002
        return np.ones(row.size, np.float32)


WEIGHTINGS: Final[Mapping[str, Weighting]] = {"one": OneWeighting()}
