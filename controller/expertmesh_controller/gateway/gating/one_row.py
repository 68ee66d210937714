"""The decision of a top-k gate for one row, with as few calls as it takes: decoding asks once per layer and token.

Between two runs of a model's graphs every call into numpy starts cold, so that what they compute costs less than that
they are made. Scores are the same operations in the same order as for many rows, so a row has the same experts and the
same float32 weights alone and in company. Gates with groups, a threshold or a sparse mixer go the long way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle import manifest
from expertmesh_controller.gateway.gating.routing import RowRouting
from expertmesh_controller.gateway.gating.scorers import sigmoid

__all__ = ["RowPicker", "row_picker"]

Vector = NDArray[np.float32]
RowPicker = Callable[[Vector], RowRouting]
"""Logits float32 [experts], which it may overwrite, to a routing."""

_TINY = np.float32(1e-20)  # as in `NormalisedWeighting`
_NOT_TINY = 1e-12
"""Adding `_TINY` to more than this changes nothing."""
_EXACT_SUM = 2
"""So many float32 have one sum, in whatever order numpy adds them among zeros."""
_FEW = 48
"""Up to so many experts Python sorts a list faster than numpy an array."""


def row_picker(gate: manifest.Gate, experts: int, pick_bias: Vector | None) -> RowPicker | None:
    """The quick way of a gate, if it has one. Logits must be finite."""
    weigh = _WEIGHTS.get((gate.scorer, gate.weighting))
    if gate.picker != "top_k" or gate.groups is not None or weigh is None:
        return None
    if pick_bias is not None and not np.isfinite(pick_bias).all():  # such experts are never picked, or all are
        return None
    scores, count, scale = _SCORES[gate.scorer], gate.max_k, float(np.float32(gate.scale))
    best = _best_of_few if experts <= _FEW else _best_of_many

    def pick(logits: Vector) -> RowRouting:
        scored = scores(logits)
        picked = best(scored if pick_bias is None else scored + pick_bias, count)
        picked.sort()
        weights = weigh(scored, picked)
        return RowRouting(tuple(picked), weights if scale == 1 else _scaled(weights, scale))

    return pick


def _softmax(logits: Vector) -> Vector:
    logits -= np.maximum.reduce(logits)
    np.exp(logits, logits)
    logits /= np.add.reduce(logits)
    return logits


def _linear(logits: Vector) -> Vector:
    return logits


def _best_of_few(scores: Vector, count: int) -> list[int]:
    """The places of the `count` largest, ties to the lower one."""
    values = scores.tolist()
    return sorted(range(len(values)), key=values.__getitem__, reverse=True)[:count]


def _best_of_many(scores: Vector, count: int) -> list[int]:
    found: list[int] = (-scores).argsort(kind="stable")[:count].tolist()
    return found


def _scores_themselves(scores: Vector, picked: list[int]) -> tuple[float, ...]:
    return tuple([scores.item(place) for place in picked])


def _shares(scores: Vector, picked: list[int]) -> tuple[float, ...]:
    values = [scores.item(place) for place in picked]
    total = sum(values)
    if len(values) <= _EXACT_SUM and total > _NOT_TINY:
        return _divided(values, float(np.float32(total)))
    kept = np.zeros_like(scores)
    kept[picked] = values
    return _divided(values, float(np.add.reduce(kept, initial=_TINY)))


def _softmax_of_picked(scores: Vector, picked: list[int]) -> tuple[float, ...]:
    values = scores[picked]
    values -= np.maximum.reduce(values)
    np.exp(values, values)
    spread = np.zeros_like(scores)  # sums are in the order of all experts
    spread[picked] = values
    return _divided(values.tolist(), float(np.add.reduce(spread)))


def _divided(values: list[float], total: float) -> tuple[float, ...]:
    """A quotient of two float32, computed in float64 and rounded when it is used, is the float32 quotient."""
    return tuple([value / total for value in values])


def _scaled(weights: Sequence[float], scale: float) -> tuple[float, ...]:
    return tuple([float(np.float32(weight)) * scale for weight in weights])


def _sigmoid_of_picked(scores: Vector, picked: list[int]) -> tuple[float, ...]:
    return tuple(sigmoid(scores[picked]).tolist())


_SCORES: Final[Mapping[str, Callable[[Vector], Vector]]] = {
    "linear": _linear,
    "softmax": _softmax,
    "sigmoid": sigmoid,
}
_Weigh = Callable[[Vector, list[int]], tuple[float, ...]]
_WEIGHTS: Final[Mapping[tuple[str, str], _Weigh]] = {
    ("softmax", "score"): _scores_themselves,
    ("softmax", "normalised"): _shares,
    ("sigmoid", "score"): _scores_themselves,
    ("sigmoid", "normalised"): _shares,
    ("linear", "softmax"): _softmax_of_picked,
    ("linear", "sigmoid"): _sigmoid_of_picked,
}
"""By scorer and weighting: those that families have."""
