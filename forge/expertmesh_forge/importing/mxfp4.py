"""MXFP4: blocks of 32 values of 4 bits (sign, 2 exponent, 1 mantissa) that share a power of two as scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import BadWeights

__all__ = ["dequantise_mxfp4"]

_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_VALUES = np.concatenate([_MAGNITUDES, -_MAGNITUDES])
_BIAS, _NOT_A_NUMBER = 127, 255


def dequantise_mxfp4(codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> Floats:
    """Codes [rows, blocks, 16] (low nibble first) and scales [rows, blocks] -> float32 [rows, blocks * 32].

    Raises:
        BadWeights: a scale is not a number.

    """
    rows, blocks, half = codes.shape
    values = np.empty((rows, blocks, half, 2), np.float32)
    values[..., 0] = _VALUES[codes & 0x0F]
    values[..., 1] = _VALUES[codes >> 4]
    if (scales == _NOT_A_NUMBER).any():
        raise BadWeights("an MXFP4 block has the scale 255, which is no number; fetch the checkpoint again")
    exponents = scales.astype(np.int32) - _BIAS
    scaled: Floats = np.ldexp(values, exponents[..., None, None]).reshape(rows, blocks * half * 2)
    return scaled
