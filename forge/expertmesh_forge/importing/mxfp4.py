"""MXFP4: blocks of 32 values of 4 bits (sign, 2 exponent, 1 mantissa) that share a power of two as scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from expertmesh_forge.dense_model import Floats

__all__ = ["MXFP4_BLOCK", "dequantise_mxfp4"]

MXFP4_BLOCK = 32

_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_VALUES = np.concatenate([_MAGNITUDES, -_MAGNITUDES])
_BIAS = 127
# The byte 255 is no number.
_SCALES = np.append(np.ldexp(np.float32(1), np.arange(255) - _BIAS), np.float32(np.nan))


def dequantise_mxfp4(codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> Floats:
    """Codes [..., blocks, 16] (low nibble first) and scales [..., blocks] -> float32 [..., blocks * 32].

    A scale that is no number gives NaN, and products beyond float32 infinity.
    """
    *outer, blocks, half = codes.shape
    values = np.empty((*codes.shape, 2), np.float32)
    values[..., 0] = _VALUES[codes & 0x0F]
    values[..., 1] = _VALUES[codes >> 4]
    with np.errstate(over="ignore"):
        values *= _SCALES[scales][..., None, None]
    return values.reshape(*outer, blocks * half * 2)
