"""Group-limited picking: experts compete in groups first, and only those of the best groups can be picked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle.parts import Groups
from expertmesh_common.errors import CorruptData
from expertmesh_controller.gateway.gating.pickers import top_k

Floats = NDArray[np.float32]


class GroupLimit:
    """Keeps the `kept` best of `count` groups of neighbours, ties to the lower group.

    Raises:
        CorruptData: the groups do not divide the experts.

    """

    def __init__(self, groups: Groups, experts: int) -> None:
        if experts % groups.count:
            raise CorruptData(f"gate has {groups.count} groups, which do not divide its {experts} experts")
        self._count, self._kept = groups.count, groups.kept
        self._score = GROUP_SCORES[groups.score]

    def __call__(self, scores: Floats) -> Floats:
        """Scores float32 [T, E], -inf for an expert that must not be picked -> the same, -inf outside kept groups."""
        tokens, experts = scores.shape
        groups = scores.reshape(tokens, self._count, experts // self._count)
        kept = top_k(self._score(groups), self._kept)
        return np.where(kept[:, :, np.newaxis], groups, _NOT).reshape(tokens, experts)

    @property
    def rule(self) -> str:
        """One line for a person."""
        return f"in the best {self._kept} of {self._count} groups"


def best(groups: Floats) -> Floats:
    """Scores [T, groups, members] -> the best of every group [T, groups]."""
    return np.asarray(groups.max(axis=2))


def sum_of_best_two(groups: Floats) -> Floats:
    """Scores [T, groups, members] -> the sum of the two best [T, groups]; one alone counts alone, none is -inf."""
    two = np.partition(groups, -2, axis=2)[:, :, -2:] if groups.shape[2] > 1 else groups
    total = np.where(two == _NOT, np.float32(0), two).sum(axis=2)
    return np.where(two[:, :, -1] == _NOT, _NOT, total)


_NOT = np.float32(-np.inf)

GROUP_SCORES: Final[Mapping[str, Callable[[Floats], Floats]]] = {"max": best, "top2_sum": sum_of_best_two}
