"""A carved model as frozen data, and the check that carving lost no neuron."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from expertmesh_forge.carve.routing import LinearRouter
from expertmesh_forge.carve.settings import CarveSettings
from expertmesh_forge.dense_model import DenseLayer, DenseModel, Floats
from expertmesh_forge.errors import CarveError
from expertmesh_forge.input_energy import InputEnergy

__all__ = ["CarvedLayer", "CarvedModel", "neuron_checksum", "require_same_neurons"]


@dataclass(frozen=True, slots=True)
class CarvedLayer:
    """The feed-forward block of one layer with its neurons in carved order: shared first, then expert by expert.

    `order` int64 [ffn] maps carved to dense positions; `gate` and `up` are [ffn, hidden], `down` [hidden, ffn], all in
    carved order; `frequency` float [routed experts] is the share of calibration tokens sent to each expert.
    """

    order: npt.NDArray[np.int64]
    gate: Floats
    up: Floats
    down: Floats
    shared_width: int
    expert_width: int
    router: LinearRouter
    frequency: tuple[float, ...]

    @property
    def experts(self) -> int:
        return len(self.frequency)

    @property
    def calibration_share(self) -> float:
        """Share of the block's neurons evaluated per calibration token."""
        evaluated = self.shared_width + self.expert_width * sum(self.frequency)
        return float(evaluated / len(self.order))

    @property
    def shared(self) -> slice:
        """Carved positions of the shared neurons."""
        return slice(0, self.shared_width)

    def expert(self, index: int) -> slice:
        """Carved positions of one routed expert's neurons."""
        start = self.shared_width + index * self.expert_width
        return slice(start, start + self.expert_width)


@dataclass(frozen=True, slots=True)
class CarvedModel:
    """`dense` gives everything but the feed-forward blocks; `fit_tokens` counts what the fits have seen.

    `energy` is that of the dense model's inputs, neurons in dense order; int4 scales are chosen by it.
    """

    dense: DenseModel
    settings: CarveSettings
    layers: tuple[CarvedLayer, ...]
    fit_tokens: int
    energy: InputEnergy | None = None

    @property
    def calibration_share(self) -> float:
        return float(np.mean([layer.calibration_share for layer in self.layers]))


def neuron_checksum(gate: Floats, up: Floats) -> npt.NDArray[np.uint64]:
    """One number per neuron from the bits of its gate and up rows, sorted: equal for equal multisets of neurons."""
    bits = np.concatenate([gate, up], axis=1).view(np.uint32).astype(np.uint64)
    weights = np.random.default_rng(0).integers(1, 2**63, bits.shape[1], dtype=np.uint64, endpoint=False) | np.uint64(1)
    sums: npt.NDArray[np.uint64] = np.sort((bits * weights).sum(axis=1, dtype=np.uint64))
    return sums


def require_same_neurons(dense: DenseLayer, carved: CarvedLayer) -> None:
    """Raise `CarveError` unless every dense neuron is in the carved layer exactly once, bit for bit."""
    if not np.array_equal(neuron_checksum(dense.gate, dense.up), neuron_checksum(carved.gate, carved.up)):
        raise CarveError("carving lost or repeated a neuron: the multisets of gate and up rows differ; report this bug")
