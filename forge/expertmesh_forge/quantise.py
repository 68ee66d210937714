"""Symmetric codes in the layout of `com.microsoft.MatMulNBits`: blocks along K, zero point 8 (int4) or 128 (int8)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import BadWeights, UnsupportedModel
from expertmesh_forge.scale_search import LOWEST, fit_codes

__all__ = ["BLOCK", "Codes", "dequantise_int4", "dequantise_int8", "quantise_int4", "quantise_int8"]

BLOCK = 32
Codes = npt.NDArray[np.uint8]


def quantise_int4(weights: Floats, block: int = BLOCK, importance: Floats | None = None) -> tuple[Codes, Floats]:
    """Quantise a matrix [N, K] (out, in) that multiplies rows [.., K].

    Returns (codes uint8 [N, K/block, block/2], scales float32 [N, K/block]); the low nibble of a byte is the even k,
    and a value is (code - 8) * scale. Scales may be negative. They are searched for the least squared error; with
    `importance` [K], the mean square of what each column of the matrix is multiplied with, for the least error of the
    product.

    Raises:
        UnsupportedModel: K is not a multiple of the block.
        BadWeights: a value is not finite, or `importance` is not one finite number >= 0 per column.

    """
    _require(weights, 4, block)
    codes, scales = fit_codes(weights, block, _checked(importance, weights.shape[1]))
    nibbles = (codes - LOWEST).astype(np.uint8).reshape(*scales.shape, block)
    return np.ascontiguousarray(nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)), scales


def quantise_int8(weights: Floats, block: int = BLOCK) -> tuple[Codes, Floats]:
    """As `quantise_int4`, with codes uint8 [N, K/block, block]; a value is (code - 128) * scale.

    The extreme of each block falls exactly on code 0: at 256 codes there is nothing to search for.
    """
    _require(weights, 8, block)
    blocks = weights.reshape(len(weights), -1, block)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    scales = (extreme / np.float32(-128)).astype(np.float32)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.clip(np.rint(blocks * inverse) + 128, 0, 255).astype(np.uint8)
    return codes, np.ascontiguousarray(scales[..., 0])


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


def _require(weights: Floats, bits: int, block: int) -> None:
    inner = weights.shape[1]
    if inner % block:
        raise UnsupportedModel(f"int{bits} needs an inner size that is a multiple of {block}, not {inner}; use fp32")
    if not np.isfinite(weights).all():
        raise BadWeights(f"a matrix of shape {weights.shape} holds NaN or infinity; it cannot be quantised")


def _checked(importance: Floats | None, inner: int) -> Floats | None:
    """As shares of the largest, so that no sum overflows."""
    if importance is None:
        return None
    if importance.shape != (inner,) or not np.isfinite(importance).all() or (importance < 0).any():
        raise BadWeights(f"importance must be {inner} finite numbers that are not negative, one per column")
    peak = importance.max()
    return (importance / peak).astype(np.float32) if peak else None


def _scaled(values: Floats, scales: Floats) -> Floats:
    scaled: Floats = (values * scales[..., None]).reshape(len(values), -1)
    return scaled
