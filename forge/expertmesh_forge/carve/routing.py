"""The linear router: predicts how much each routed expert would say, and where to stop listening."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from expertmesh_forge.carve.partition import Partition
from expertmesh_forge.dense_model import Floats

__all__ = ["LinearRouter", "expert_norms", "fit_router", "threshold_for_share"]


@dataclass(frozen=True, slots=True)
class LinearRouter:
    """scores = rows @ weights + bias; an expert is evaluated when its score >= threshold."""

    weights: Floats
    bias: Floats
    threshold: np.float32

    def scores(self, rows: Floats) -> Floats:
        """Normed rows [tokens, hidden] -> float32 [tokens, experts]."""
        scores: Floats = rows @ self.weights + self.bias
        return scores

    def picks(self, rows: Floats) -> npt.NDArray[np.bool_]:
        """Which experts each row is sent to, bool [tokens, experts]; none or all are possible."""
        picked: npt.NDArray[np.bool_] = self.scores(rows) >= self.threshold
        return picked

    def with_threshold(self, threshold: np.float32) -> LinearRouter:
        return replace(self, threshold=threshold)


def expert_norms(neurons: Floats, down: Floats, partition: Partition) -> Floats:
    """The length of each routed expert's output, float32 [tokens, experts]."""
    norms = [np.linalg.norm(neurons[:, expert] @ down[:, expert].T, axis=1) for expert in partition.routed]
    return np.stack(norms, axis=1).astype(np.float32)


def fit_router(rows: Floats, norms: Floats, ridge: float) -> LinearRouter:
    """Ridge regression of the experts' output lengths on the normed rows; its threshold lets everything pass."""
    # Centring first keeps the bias out of the penalty.
    row_mean = rows.mean(axis=0, dtype=np.float64)
    norm_mean = norms.mean(axis=0, dtype=np.float64)
    centred = rows - row_mean.astype(np.float32)
    gram = (centred.T @ centred).astype(np.float64)
    moment = (centred.T @ (norms - norm_mean.astype(np.float32))).astype(np.float64)
    strength = np.diag(gram) * ridge
    strength += max(float(strength.mean()), 1e-12)
    weights = np.linalg.solve(gram + np.diag(strength), moment)
    bias = norm_mean - row_mean @ weights
    return LinearRouter(weights.astype(np.float32), bias.astype(np.float32), np.float32(np.finfo(np.float32).min))


def threshold_for_share(scores: Floats, share: float) -> np.float32:
    """The threshold that `share` of all scores reach; at 1 every score anywhere reaches it."""
    if share >= 1.0:
        return np.float32(np.finfo(np.float32).min)
    if share <= 0.0:
        return np.float32(np.finfo(np.float32).max)
    return np.float32(np.quantile(scores, 1.0 - share))
