"""How much of a model's feed-forward a row goes through: the unit in which work is told."""

from __future__ import annotations

from collections.abc import Sequence

from expertmesh_common.bundle.manifest import Layer

__all__ = ["expert_shares", "neuron_shares"]


def neuron_shares(layers: Sequence[Layer]) -> list[float]:
    """Of each layer: the share of the model's feed-forward that one of its neurons is; layers weigh alike."""
    return [1.0 / (layer.total_width * len(layers)) for layer in layers]


def expert_shares(layers: Sequence[Layer]) -> list[list[float]]:
    """The same of each routed expert, [layers][experts]."""
    shares = neuron_shares(layers)
    return [[expert.width * share for expert in layer.experts] for layer, share in zip(layers, shares, strict=True)]
