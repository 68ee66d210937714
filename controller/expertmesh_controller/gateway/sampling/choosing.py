"""Choosing tokens: a pure function of logits, options, seed, position and the tokens before.

The random number of a position comes from a counter-based generator keyed by the seed, so a replayed request goes on
with the numbers it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from expertmesh_controller.gateway.sampling.options import SamplingOptions

__all__ = ["Choice", "Draw", "choose", "described", "likeliest", "uniform", "unusable"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_FIRST_CANDIDATES = 512  # almost always enough for top_p, and a sort of the whole vocabulary costs milliseconds


class Draw(NamedTuple):
    """One row's question. `position` 0 is the first generated token; `previous` int64 [n] is prompt and answer."""

    options: SamplingOptions
    position: int
    previous: Ids


class Choice(NamedTuple):
    """The token, and if asked for, its log probability under the model and the most likely alternatives.

    Log probabilities are those of the model's own distribution, before any option changes it.
    """

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


def likeliest(logits: Floats) -> list[int]:
    """The id of each row's largest value, or of its first NaN; ties go to the smaller id."""
    ids: list[int] = logits.argmax(axis=1).tolist()
    return ids


def choose(logits: Floats, draws: Sequence[Draw], best: Sequence[int] | None = None) -> list[Choice]:
    """One token per row of `logits` float32 [n, vocabulary], which is left as it is. `best` is `likeliest` of it."""
    best = likeliest(logits) if best is None else best
    return [_chosen(logits, row, draw, top) for row, (draw, top) in enumerate(zip(draws, best, strict=True))]


def _chosen(logits: Floats, row: int, draw: Draw, top: int) -> Choice:
    options = draw.options
    token_id = top if options.plain_greedy else _draw(logits[row], draw)
    return described(logits[row], token_id, options.top_logprobs) if options.logprobs else Choice(token_id)


def described(logits: Floats, token_id: int, top_logprobs: int) -> Choice:
    """A token with its log probability and the `top_logprobs` most likely ones under `logits` float32 [vocabulary]."""
    scores = logits.astype(np.float64)
    top = scores.max()
    total = top + np.log(np.exp(scores - top).sum())
    best = _best(scores, top_logprobs) if top_logprobs else ()
    alternatives = tuple((int(i), float(scores[i] - total)) for i in best)
    return Choice(token_id, float(scores[token_id] - total), alternatives)


def unusable(logits: Floats, best: Sequence[int]) -> list[bool]:
    """Which rows hold NaN or infinite values at `best`, their `likeliest`: there is nothing to choose."""
    return [not math.isfinite(logits.item(row, token)) for row, token in enumerate(best)]


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that belongs to a position of a seed."""
    raw = int(np.random.Philox(key=seed, counter=position).random_raw())
    return (raw >> 11) * 2.0**-53


def _draw(logits: Floats, draw: Draw) -> int:
    options = draw.options
    scores = logits.astype(np.float64)
    if options.repetition_penalty != 1:
        seen = scores[draw.previous]
        scores[draw.previous] = np.where(seen > 0, seen / options.repetition_penalty, seen * options.repetition_penalty)
    if options.temperature == 0:
        return int(np.argmax(scores))
    ids, weights = _candidates(scores / options.temperature, options)
    reached = np.cumsum(weights)
    return int(
        ids[min(np.searchsorted(reached, uniform(options.seed, draw.position) * reached[-1], "right"), len(ids) - 1)]
    )


def _candidates(scores: NDArray[np.float64], options: SamplingOptions) -> tuple[Ids, NDArray[np.float64]]:
    """(ids, unnormalised probabilities) that survive top_k, top_p and min_p."""
    ids: Ids = np.arange(len(scores))
    weights = np.exp(scores - scores.max())
    if options.top_k:
        ids = _best(weights, options.top_k)
        weights = weights[ids]
    if options.top_p < 1:
        kept = _nucleus(weights, options.top_p)
        ids, weights = ids[kept], weights[kept]
    if options.min_p:
        likely = weights >= options.min_p * weights.max()
        ids, weights = ids[likely], weights[likely]
    return ids, weights


def _nucleus(weights: NDArray[np.float64], share: float) -> Ids:
    """The fewest most likely places whose weights reach `share` of the whole."""
    wanted, count = share * weights.sum(), _FIRST_CANDIDATES
    while True:
        best = _best(weights, count)
        reached = np.cumsum(weights[best])
        if reached[-1] >= wanted or count >= len(weights):
            return best[: int(np.searchsorted(reached, wanted)) + 1]
        count *= 8


def _best(weights: NDArray[np.float64], count: int) -> Ids:
    """Places of the `count` largest weights, largest first, ties by place."""
    if count >= len(weights):
        return np.argsort(-weights, kind="stable")
    bound = np.partition(weights, len(weights) - count)[len(weights) - count]
    among = np.flatnonzero(weights >= bound)
    return among[np.argsort(-weights[among], kind="stable")][:count]
