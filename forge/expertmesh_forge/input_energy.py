"""How large the inputs of each matrix are: what quantising needs to know of a model's activations."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from expertmesh_forge.dense_forward import Rope, attention, embed, hidden_neurons, rms_norm
from expertmesh_forge.dense_model import DenseConfig, DenseLayer, DenseModel, Floats

__all__ = ["InputEnergy", "LayerEnergy", "input_energy"]


@dataclass(frozen=True, slots=True)
class LayerEnergy:
    """Mean squares per input, float32: of q, k and v [hidden], o [query width], gate and up [hidden], down [ffn]."""

    attention: Floats
    attended: Floats
    feed_forward: Floats
    neurons: Floats

    def of(self, matrix: str) -> Floats:
        """That of the inputs of a `DenseLayer`'s matrix."""
        return {"o": self.attended, "gate": self.feed_forward, "up": self.feed_forward, "down": self.neurons}.get(
            matrix, self.attention
        )


@dataclass(frozen=True, slots=True)
class InputEnergy:
    """Those of a whole model; `head` float32 [hidden]."""

    layers: tuple[LayerEnergy, ...]
    head: Floats


def input_energy(model: DenseModel, tokens: npt.NDArray[np.int64]) -> InputEnergy:
    """Measure the dense model on windows int64 [windows, tokens]."""
    config, rope, states = model.config, Rope(model.config, tokens.shape[1]), embed(model, tokens)
    layers = []
    for layer in model.layers:
        energy, states = _layer(config, layer, rope, states)
        layers.append(energy)
    return InputEnergy(tuple(layers), _mean_square(rms_norm(states, model.final_norm, config.norm_eps)))


def _layer(config: DenseConfig, layer: DenseLayer, rope: Rope, states: Floats) -> tuple[LayerEnergy, Floats]:
    """Also the states after the layer."""
    mixed = _mixed(config, layer, rope, states)
    between: Floats = states + mixed @ layer.o.T
    rows = rms_norm(between, layer.ffn_norm, config.norm_eps).reshape(-1, config.hidden)
    neurons = hidden_neurons(layer, rows)
    energy = LayerEnergy(
        attention=_mean_square(rms_norm(states, layer.attn_norm, config.norm_eps)),
        attended=_mean_square(mixed),
        feed_forward=_mean_square(rows),
        neurons=_mean_square(neurons),
    )
    return energy, between + (neurons @ layer.down.T).reshape(states.shape)


def _mixed(config: DenseConfig, layer: DenseLayer, rope: Rope, states: Floats) -> Floats:
    """What o is multiplied with: what attention gives when o only picks out, hidden-many at a time."""
    hidden, width = config.hidden, config.query_width
    picking = (np.eye(hidden, width, start, dtype=np.float32) for start in range(0, width, hidden))
    parts = [attention(config, replace(layer, o=o), rope, states) for o in picking]
    mixed: Floats = np.concatenate(parts, axis=-1)[..., :width]
    return mixed


def _mean_square(rows: Floats) -> Floats:
    found: Floats = np.square(rows).reshape(-1, rows.shape[-1]).mean(axis=0)
    return found
