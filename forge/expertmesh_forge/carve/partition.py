"""Which neurons are shared and which form the routed experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from expertmesh_forge.carve.clustering import balanced_clusters
from expertmesh_forge.carve.settings import CarveSettings
from expertmesh_forge.dense_model import Floats

__all__ = ["Partition", "importance_partition", "neuron_importance", "random_partition"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Partition:
    """`shared` int64 [shared neurons] and `routed` int64 [experts, width]; together each neuron once."""

    shared: Indices
    routed: Indices

    @property
    def order(self) -> Indices:
        """All neurons, shared first, then expert by expert."""
        return np.concatenate([self.shared, self.routed.reshape(-1)])


def neuron_importance(neurons: Floats, down: Floats) -> Floats:
    """Root-mean-square output of each neuron: neurons [tokens, ffn], down [hidden, ffn] -> [ffn]."""
    rms = np.sqrt(np.mean(np.square(neurons), axis=0))
    importance: Floats = rms * np.linalg.norm(down, axis=0)
    return importance


def importance_partition(neurons: Floats, down: Floats, settings: CarveSettings) -> Partition:
    """Share the most important neurons; cluster the others by how they fire together."""
    rng = np.random.default_rng(settings.seed)
    by_importance = np.argsort(-neuron_importance(neurons, down), kind="stable")
    shared_count = neurons.shape[1] // settings.experts * settings.shared_experts
    shared, rest = np.sort(by_importance[:shared_count]), by_importance[shared_count:]
    tokens = rng.permutation(len(neurons))[: settings.cluster_tokens]
    firing = np.abs(neurons[tokens][:, rest]).T
    labels = balanced_clusters(firing, settings.routed_experts, settings.cluster_rounds, rng)
    return Partition(shared, _grouped(rest, labels, settings.routed_experts))


def random_partition(ffn: int, settings: CarveSettings) -> Partition:
    """A partition that looks at nothing: the baseline for the one above."""
    order = np.random.default_rng(settings.seed).permutation(ffn)
    shared_count = ffn // settings.experts * settings.shared_experts
    routed = np.sort(order[shared_count:].reshape(settings.routed_experts, -1), axis=1)
    return Partition(np.sort(order[:shared_count]), routed)


def _grouped(neurons: Indices, labels: Indices, groups: int) -> Indices:
    return np.stack([np.sort(neurons[labels == group]) for group in range(groups)])
