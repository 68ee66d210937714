"""Weights as a bundle stores them at each precision, and back; `expertmesh_common.graphs.matrices` has the layouts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from expertmesh_common.bundle.manifest import Precision
from expertmesh_common.bundle.tensors import Array
from expertmesh_common.graphs.matrices import BLOCKS, HALVES, common_block
from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import BadWeights
from expertmesh_forge.quantise import dequantise_int4, dequantise_int8, quantise_int4, quantise_int8

__all__ = ["decode_matrix", "encode_embedding", "encode_matrix"]

_BYTES_PER_INT8_BLOCK = frozenset(BLOCKS)  # int4 blocks have half as many: 64 and 16
_FP16_MAX = np.finfo(np.float16).max


def encode_matrix(
    name: str, weights: Floats, precision: Precision, block: int | None = None, importance: Floats | None = None
) -> dict[str, Array]:
    """The tensors of a matrix float32 [out, in] at `precision`, by their names in the file.

    `block` is 128 or 32 and for int8 and int4 only; by default 128 where `in` divides by it. Give both matrices of an
    expert the `common_block` of their inner sizes: a layer can only be run as one operator if its blocks are alike.
    `importance` float32 [in] is the mean square of the matrix's inputs; int4 looks for scales that hurt them least.

    Raises:
        UnsupportedModel: `in` is not a multiple of the block.
        BadWeights: a value is not finite, or too large for fp16.

    """
    if precision == "fp32":
        return {name: np.ascontiguousarray(weights.T)}
    if precision in HALVES:
        return {name: _halved(f"matrix {name}", weights.T, precision)}
    block = block or common_block(weights.shape[1])
    if precision == "int8":
        codes, scales = quantise_int8(weights, block)
    else:
        codes, scales = quantise_int4(weights, block, importance)
    return {f"{name}_q": codes, f"{name}_s": scales}


def encode_embedding(table: Floats, precision: Precision) -> Array:
    """The table [vocabulary, hidden] in the type that it has at `precision`; `astype(np.float32)` is the way back.

    At int8 and int4 it has 16 bits too: it is looked up and never multiplied, so codes would save little time, and a
    checkpoint of 16 bits loses nothing.

    Raises:
        BadWeights: a value is not finite, or too large for fp16.

    """
    if precision == "fp32":
        return table
    return _halved("the embedding", table, precision if precision in HALVES else _closest_half(table))


def decode_matrix(name: str, tensors: Mapping[str, Array]) -> Floats:
    """The matrix `name` of a file as float32 [out, in], whichever precision it has."""
    if name in tensors:
        return tensors[name].astype(np.float32).T
    codes, scales = tensors[f"{name}_q"].astype(np.uint8), tensors[f"{name}_s"].astype(np.float32)
    dequantise = dequantise_int8 if codes.shape[2] in _BYTES_PER_INT8_BLOCK else dequantise_int4
    return dequantise(codes, scales)


def _halved(what: str, weights: Floats, precision: str) -> Array:
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(weights).astype(HALVES[precision])
    if not np.isfinite(half).all():
        peak = float(np.abs(weights).max())
        raise BadWeights(f"{what} has values up to {peak:.3g}, which {precision} cannot hold; use fp32 or bf16")
    return half


def _closest_half(table: Floats) -> str:
    """bf16 where it loses nothing, as of most published checkpoints; else fp16, if no value is beyond its range."""
    lower_halves = np.ascontiguousarray(table, "<f4").view("<u2")[:, ::2]
    fits = max(table.max(), -table.min()) <= _FP16_MAX
    return "fp16" if lower_halves.any() and fits else "bf16"
