"""Symmetric int4 in the layout of `com.microsoft.MatMulNBits`: blocks of 32 along K, zero point 8."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import BadWeights, UnsupportedModel

__all__ = ["BLOCK", "dequantise_int4", "quantise_int4"]

BLOCK = 32
_ZERO_POINT = 8


def quantise_int4(weights: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Quantise a matrix [N, K] (out, in) that multiplies rows [.., K].

    Returns (codes uint8 [N, K/32, 16], scales float32 [N, K/32]); the low nibble of a byte is the even k, and a value
    is (code - 8) * scale. The extreme of each block falls exactly on code 0, so all sixteen codes are used.

    Raises:
        UnsupportedModel: K is not a multiple of 32.
        BadWeights: a value is not finite.

    """
    rows, inner = weights.shape
    if inner % BLOCK:
        raise UnsupportedModel(f"int4 needs an inner size that is a multiple of {BLOCK}, not {inner}; use fp32")
    if not np.isfinite(weights).all():
        raise BadWeights(f"a matrix of shape {weights.shape} holds NaN or infinity; it cannot be quantised")
    blocks = weights.reshape(rows, inner // BLOCK, BLOCK)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    scales = (extreme / np.float32(-_ZERO_POINT)).astype(np.float32)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.clip(np.rint(blocks * inverse) + _ZERO_POINT, 0, 15).astype(np.uint8)
    packed = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return np.ascontiguousarray(packed), np.ascontiguousarray(scales[..., 0])


def dequantise_int4(codes: npt.NDArray[np.uint8], scales: Floats) -> Floats:
    """The float32 matrix [N, K] that codes and scales stand for."""
    rows, blocks, _ = codes.shape
    values = np.empty((rows, blocks, BLOCK), np.float32)
    values[..., 0::2] = codes & 0x0F
    values[..., 1::2] = codes >> 4
    dequantised: Floats = ((values - _ZERO_POINT) * scales[..., None]).reshape(rows, blocks * BLOCK)
    return dequantised
