"""A carved model's weights under the names and in the layouts that the bundle's graphs ask for.

Matrices enter as [out, in]. At fp32 a graph wants them as [in, out]; at int4 as codes and scales per output row.
"""

from __future__ import annotations

import numpy as np

from expertmesh_common.bundle.manifest import Precision
from expertmesh_common.bundle.tensors import Array
from expertmesh_forge.carve.carved_model import CarvedLayer, CarvedModel
from expertmesh_forge.dense_model import DenseLayer, Floats
from expertmesh_forge.quantise import quantise_int4

__all__ = ["expert_tensors", "gate_tensors", "segment_tensors"]

Tensors = dict[str, Array]


def expert_tensors(layer: CarvedLayer, index: int, precision: Precision) -> Tensors:
    """One routed expert: `gate_up` and `down`."""
    neurons = layer.expert(index)
    return _feed_forward(layer, neurons, "", precision)


def gate_tensors(layer: CarvedLayer) -> Tensors:
    """The router: `router` float32 [hidden, experts] and `bias` float32 [experts]."""
    return {"router": np.ascontiguousarray(layer.router.weights), "bias": layer.router.bias}


def segment_tensors(carved: CarvedModel, index: int, precision: Precision) -> Tensors:
    """Everything segment `index` of the trunk holds; the last one is the head."""
    model = carved.dense
    if index == model.config.layers:
        return {"final_norm": model.final_norm, **_matrix("lm_head", model.head, precision)}
    tensors = _attention(model.layers[index], precision)
    block = carved.layers[index]
    if block.shared_width:
        tensors |= _feed_forward(block, block.shared, "shared_", precision)
    if index == 0:
        tensors["embed"] = model.embedding
    return tensors


def _attention(layer: DenseLayer, precision: Precision) -> Tensors:
    qkv: Floats = np.concatenate([layer.q, layer.k, layer.v], axis=0)
    return {
        "attn_norm": layer.attn_norm,
        **_matrix("qkv", qkv, precision),
        **_matrix("o", layer.o, precision),
        "ffn_norm": layer.ffn_norm,
    }


def _feed_forward(layer: CarvedLayer, neurons: slice, prefix: str, precision: Precision) -> Tensors:
    gate_up: Floats = np.concatenate([layer.gate[neurons], layer.up[neurons]], axis=0)
    down = np.ascontiguousarray(layer.down[:, neurons])
    return {**_matrix(f"{prefix}gate_up", gate_up, precision), **_matrix(f"{prefix}down", down, precision)}


def _matrix(name: str, weights: Floats, precision: Precision) -> Tensors:
    if precision == "fp32":
        return {name: np.ascontiguousarray(weights.T)}
    codes, scales = quantise_int4(weights)
    return {f"{name}_q": codes, f"{name}_s": scales}
