"""Symmetric codes in the layout of `com.microsoft.MatMulNBits`: blocks along K, zero point 8 (int4) or 128 (int8)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import BadWeights, UnsupportedModel

__all__ = ["BLOCK", "Codes", "dequantise_int4", "dequantise_int8", "quantise_int4", "quantise_int8"]

BLOCK = 32
Codes = npt.NDArray[np.uint8]


def quantise_int4(weights: Floats, block: int = BLOCK) -> tuple[Codes, Floats]:
    """Quantise a matrix [N, K] (out, in) that multiplies rows [.., K].

    Returns (codes uint8 [N, K/block, block/2], scales float32 [N, K/block]); the low nibble of a byte is the even k,
    and a value is (code - 8) * scale. The extreme of each block falls exactly on code 0, so all sixteen codes are used.

    Raises:
        UnsupportedModel: K is not a multiple of the block.
        BadWeights: a value is not finite.

    """
    codes, scales = _quantise(weights, 4, block)
    return np.ascontiguousarray(codes[..., 0::2] | (codes[..., 1::2] << 4)), scales


def quantise_int8(weights: Floats, block: int = BLOCK) -> tuple[Codes, Floats]:
    """As `quantise_int4`, with codes uint8 [N, K/block, block]; a value is (code - 128) * scale."""
    return _quantise(weights, 8, block)


def dequantise_int4(codes: Codes, scales: Floats) -> Floats:
    """The float32 matrix [N, K] that codes and scales stand for."""
    rows, blocks, half = codes.shape
    values = np.empty((rows, blocks, 2 * half), np.float32)
    values[..., 0::2] = codes & 0x0F
    values[..., 1::2] = codes >> 4
    return _scaled(values - 8, scales)


def dequantise_int8(codes: Codes, scales: Floats) -> Floats:
    """The float32 matrix [N, K] that codes and scales stand for."""
    return _scaled(codes.astype(np.float32) - 128, scales)


def _quantise(weights: Floats, bits: int, block: int) -> tuple[Codes, Floats]:
    rows, inner = weights.shape
    if inner % block:
        raise UnsupportedModel(f"int{bits} needs an inner size that is a multiple of {block}, not {inner}; use fp32")
    if not np.isfinite(weights).all():
        raise BadWeights(f"a matrix of shape {weights.shape} holds NaN or infinity; it cannot be quantised")
    zero_point = 1 << (bits - 1)
    blocks = weights.reshape(rows, inner // block, block)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    scales = (extreme / np.float32(-zero_point)).astype(np.float32)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.clip(np.rint(blocks * inverse) + zero_point, 0, 2 * zero_point - 1).astype(np.uint8)
    return codes, np.ascontiguousarray(scales[..., 0])


def _scaled(values: Floats, scales: Floats) -> Floats:
    scaled: Floats = (values * scales[..., None]).reshape(len(values), -1)
    return scaled
