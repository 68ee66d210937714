"""Perplexity of held-out windows, dense against carved, with intervals over documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from expertmesh_forge.dense_forward import logits
from expertmesh_forge.dense_model import DenseModel, Floats

__all__ = ["Losses", "PerplexityRatio", "perplexity_ratio", "window_losses"]

Losses = npt.NDArray[np.float64]

_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class PerplexityRatio:
    """Perplexity over that of the dense model, with its 95 % interval (paired bootstrap over documents)."""

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


def window_losses(model: DenseModel, states: Floats, tokens: npt.NDArray[np.int64]) -> Losses:
    """Mean negative log-likelihood in nats of the next token, per window."""
    losses = np.empty(len(tokens))
    for index, (window, ids) in enumerate(zip(states, tokens, strict=True)):
        scores = logits(model, window[:-1])
        scores -= scores.max(axis=1, keepdims=True)
        correct = scores[np.arange(len(scores)), ids[1:]]
        losses[index] = np.mean(np.log(np.exp(scores).sum(axis=1)) - correct)
    return losses


def perplexity_ratio(losses: Losses, dense_losses: Losses, seed: int = 0) -> PerplexityRatio:
    """Exp of the mean loss difference; resamples windows, so give at most one window per document."""
    differences = losses - dense_losses
    picks = np.random.default_rng(seed).integers(0, len(differences), (_RESAMPLES, len(differences)))
    low, high = np.quantile(np.exp(differences[picks].mean(axis=1)), (0.025, 0.975))
    return PerplexityRatio(float(np.exp(differences.mean())), float(low), float(high))
