"""Scorers: rows to one score per expert. The registry is what a bundle's `scorer` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle.tensors import Array
from expertmesh_common.errors import CorruptData

Floats = NDArray[np.float32]
Scorer = Callable[[Floats], Floats]
"""rows float32 [T, hidden] -> scores float32 [T, experts]."""


class LinearScorer:
    """`rows @ router + bias`."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._router = _floats(tensors, "router", 2)
        self._bias = _floats(tensors, "bias", 1)
        if self._bias.shape != self._router.shape[1:]:
            raise CorruptData(f"gate has router {self._router.shape} and bias {self._bias.shape}; they must agree")

    @property
    def shape(self) -> tuple[int, int]:
        """(hidden, experts)."""
        hidden, experts = self._router.shape
        return hidden, experts

    def __call__(self, rows: Floats) -> Floats:
        scores = rows @ self._router
        scores += self._bias
        return scores


def _floats(tensors: Mapping[str, Array], name: str, dimensions: int) -> Floats:
    """The tensor as contiguous memory of its own, so that the hot path never touches a file map."""
    value = tensors.get(name)
    if value is None or value.ndim != dimensions or value.dtype != np.float32:
        found = "missing" if value is None else f"{value.dtype} {value.shape}"
        raise CorruptData(f"gate tensor {name} is {found}; it must be float32 with {dimensions} dimensions")
    return np.array(value, np.float32)


SCORERS: Final[Mapping[str, type[LinearScorer]]] = {"linear": LinearScorer}
