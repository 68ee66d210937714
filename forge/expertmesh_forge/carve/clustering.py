"""Equal-sized clusters of neurons by co-activation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from expertmesh_forge.dense_model import Floats

__all__ = ["balanced_clusters"]

_TINY = np.float32(1e-9)


def balanced_clusters(firing: Floats, clusters: int, rounds: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Label each row of `firing` [neurons, tokens] so that every cluster gets equally many.

    Balanced k-means on cosine similarity: `rounds` times assign by regret, then move the centres.
    """
    features = _unit_rows(firing)
    centres = features[rng.permutation(len(features))[:clusters]]
    labels = np.zeros(len(features), np.int64)
    for _ in range(rounds):
        labels = _assign(features @ centres.T)
        centres = _unit_rows(np.stack([features[labels == index].mean(axis=0) for index in range(clusters)]))
    return labels


def _assign(similarity: Floats) -> npt.NDArray[np.int64]:
    """Give each row its best open cluster, rows that would lose most by waiting first."""
    rows, clusters = similarity.shape
    labels = np.full(rows, -1, np.int64)
    room = np.full(clusters, rows // clusters)
    waiting = np.arange(rows)
    while len(waiting):
        best, regret = _best_and_regret(np.where(room > 0, similarity[waiting], -np.inf))
        for place in np.argsort(-regret, kind="stable"):
            if room[best[place]] > 0:
                labels[waiting[place]] = best[place]
                room[best[place]] -= 1
        waiting = waiting[labels[waiting] < 0]
    return labels


def _best_and_regret(similarity: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Each row's best cluster, and by how much it beats the second best."""
    best = similarity.argmax(axis=1)
    ranked = np.sort(similarity, axis=1)
    if similarity.shape[1] == 1:
        return best, ranked[:, -1]
    # Where one cluster is left open the second is -inf, and every order is as good as another.
    regret: Floats = ranked[:, -1] - ranked[:, -2]
    return best, regret


def _unit_rows(rows: Floats) -> Floats:
    unit: Floats = rows / (np.linalg.norm(rows, axis=1, keepdims=True) + _TINY)
    return unit
