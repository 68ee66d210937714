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
"""Logits float32 [T, experts] -> scores of the same shape, the same array or a new one."""


class Logits:
    """`rows @ router + bias`: rows float32 [T, hidden] -> a new array float32 [T, experts]."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._router = floats(tensors, "router", 2)
        self._bias = floats(tensors, "bias", 1)
        if self._bias.shape != self._router.shape[1:]:
            raise CorruptData(f"gate has router {self._router.shape} and bias {self._bias.shape}; they must agree")
        self._has_bias = bool(self._bias.any())

    @property
    def shape(self) -> tuple[int, int]:
        """(hidden, experts)."""
        hidden, experts = self._router.shape
        return hidden, experts

    def __call__(self, rows: Floats) -> Floats:
        # Row by row inside numpy: one product over all rows adds up in another order, and a row must not route
        # differently in company.
        logits = rows @ self._router if len(rows) == 1 else (rows[:, np.newaxis] @ self._router)[:, 0]
        logits += self._bias
        return logits

    def of_row(self, row: Floats) -> Floats:
        """The same of one row float32 [1, hidden]: float32 [experts]."""
        logits: Floats = row[0].dot(self._router)
        if self._has_bias:
            logits += self._bias
        return logits


def floats(tensors: Mapping[str, Array], name: str, dimensions: int) -> Floats:
    """The tensor as contiguous memory of its own, so that the hot path never touches a file map.

    Raises:
        CorruptData: it is missing, or not float32 with that many dimensions.

    """
    value = tensors.get(name)
    if value is None or value.ndim != dimensions or value.dtype != np.float32:
        found = "missing" if value is None else f"{value.dtype} {value.shape}"
        raise CorruptData(f"gate tensor {name} is {found}; it must be float32 with {dimensions} dimensions")
    return np.array(value, np.float32)


def linear(logits: Floats) -> Floats:
    """The logits as they are."""
    return logits


def softmax(logits: Floats) -> Floats:
    """Shares of every row; -inf has none, and a row of nothing else has no shares at all. Works in place."""
    logits -= np.maximum.reduce(logits, axis=1, keepdims=True, initial=_LEAST)
    np.exp(logits, out=logits)
    logits /= np.add.reduce(logits, axis=1, keepdims=True, initial=_TINY)
    return logits


def sigmoid(logits: Floats) -> Floats:
    """Each logit for itself, as a new array."""
    with np.errstate(over="ignore"):  # exp overflows where the answer is 0
        scores: Floats = np.reciprocal(1 + np.exp(-logits))
        return scores


_LEAST = np.finfo(np.float32).min
_TINY = np.float32(1e-20)  # changes no sum of shares, and makes 0 of 0/0

SCORERS: Final[Mapping[str, Scorer]] = {"linear": linear, "softmax": softmax, "sigmoid": sigmoid}
