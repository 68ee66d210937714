"""A carved model's weights under the names and in the layouts that the bundle's graphs ask for.

Matrices enter as [out, in]; `formats` knows how they are stored.
"""

from __future__ import annotations

import numpy as np

from expertmesh_common.bundle.manifest import Precision
from expertmesh_common.bundle.tensors import Array
from expertmesh_common.graphs.matrices import common_block
from expertmesh_forge.carve.carved_model import CarvedLayer, CarvedModel
from expertmesh_forge.dense_model import DenseLayer, Floats
from expertmesh_forge.formats import encode_embedding, encode_matrix
from expertmesh_forge.input_energy import LayerEnergy

__all__ = ["expert_tensors", "gate_tensors", "segment_tensors"]

Tensors = dict[str, Array]


def expert_tensors(layer: CarvedLayer, index: int, precision: Precision, energy: LayerEnergy | None = None) -> Tensors:
    """One routed expert: `gate_up` and `down`."""
    neurons = layer.expert(index)
    return _feed_forward(layer, neurons, "", precision, energy)


def gate_tensors(layer: CarvedLayer) -> Tensors:
    """The router: `router` float32 [hidden, experts] and `bias` float32 [experts]."""
    return {"router": np.ascontiguousarray(layer.router.weights), "bias": layer.router.bias}


def segment_tensors(carved: CarvedModel, index: int, precision: Precision) -> Tensors:
    """Everything segment `index` of the trunk holds; the last one is the head."""
    model = carved.dense
    if index == model.config.layers:
        importance = carved.energy.head if carved.energy else None
        head = encode_matrix("lm_head", model.head, precision, importance=importance)
        return {"final_norm": model.final_norm, **head}
    energy = carved.energy.layers[index] if carved.energy else None
    tensors = _attention(model.layers[index], precision, energy)
    block = carved.layers[index]
    if block.shared_width:
        tensors |= _feed_forward(block, block.shared, "shared_", precision, energy)
    if index == 0:
        tensors["embed"] = encode_embedding(model.embedding, precision)
    return tensors


def _attention(layer: DenseLayer, precision: Precision, energy: LayerEnergy | None) -> Tensors:
    qkv: Floats = np.concatenate([layer.q, layer.k, layer.v], axis=0)
    return {
        "attn_norm": layer.attn_norm,
        **encode_matrix("qkv", qkv, precision, importance=energy.attention if energy else None),
        **encode_matrix("o", layer.o, precision, importance=energy.attended if energy else None),
        "ffn_norm": layer.ffn_norm,
    }


def _feed_forward(
    layer: CarvedLayer, neurons: slice, prefix: str, precision: Precision, energy: LayerEnergy | None
) -> Tensors:
    gate_up: Floats = np.concatenate([layer.gate[neurons], layer.up[neurons]], axis=0)
    down = np.ascontiguousarray(layer.down[:, neurons])
    # Alike for shared and routed experts, so that a layer can be run as one product over all of them.
    block = common_block(layer.gate.shape[1], layer.expert_width, layer.shared_width)
    into, within = (energy.feed_forward, energy.neurons[layer.order][neurons]) if energy else (None, None)
    return {
        **encode_matrix(f"{prefix}gate_up", gate_up, precision, block, into),
        **encode_matrix(f"{prefix}down", down, precision, block, within),
    }
