"""The scale of every block of symmetric 4-bit codes: the best of some candidates, by the squared error that they leave.

The plain rule puts a block's extreme value on code -8. A finer step clips the extreme and serves all others better; one
that puts it on -7 .. -4 finds back the grid of weights that have been quantised before. Each candidate's codes get
the scale that fits them best by least squares.

Errors count by how large the inputs are that they meet. Where that is not known, the error of a large value counts more
than that of a small one: least squares alone would clip what matters most, and gains nothing in perplexity.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from expertmesh_forge.dense_model import Floats

__all__ = ["LOWEST", "fit_codes"]

LOWEST, HIGHEST = -8, 7
_PLAIN: Final = -8.0
# Where the extreme falls. Beyond -8 and 7 it is clipped; the sign decides which end of the range it takes. More of them
# take longer and leave at most one per cent less.
_CANDIDATES: Final = (-7.0, -6.0, -5.0, -4.0, -7.5, -8.4, -8.8, -9.3, -10.0, 7.5, 7.9, 8.3, 8.8)
# Of the block's energy: a smaller gain is rounding, and the plain rule gives back exactly what it once made.
_LEAST_GAIN: Final = np.float32(1e-9)
# What is worked on at a time stays in the second-level cache.
_VALUES_AT_ONCE: Final = 1 << 16


def fit_codes(weights: Floats, block: int, importance: Floats | None = None) -> tuple[Floats, Floats]:
    """Codes of a finite matrix [N, K], as float32 [N, K] in -8 .. 7, and scales float32 [N, K / block].

    Errors of column k count `importance[k]` times, which must be finite and not negative; without, the square of their
    value times. No block's squared error, by importance or plain, is larger than the plain rule's, save for rounding.
    Rows are fitted each for itself.
    """
    rows, inner = weights.shape
    codes, scales = np.empty((rows, inner), np.float32), np.empty((rows, inner // block), np.float32)
    step = max(1, _VALUES_AT_ONCE // inner)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        blocks = _columns(weights[part], block)
        counts = None if importance is None else _columns(_repeated(importance, len(weights[part])), block)
        found, scales_found = _fit(blocks, counts)
        codes[part] = found.T.reshape(-1, inner)
        scales[part] = scales_found.reshape(-1, inner // block)
    return codes, scales


def _fit(blocks: Floats, counts: Floats | None) -> tuple[Floats, Floats]:
    """Codes [block, blocks] and scales [blocks] for values and counts [block, blocks]."""
    low, high = blocks.min(axis=0), blocks.max(axis=0)
    extreme = np.where(-low >= high, low, high)
    # In units of the extreme, so that no square is too large or too small for float32.
    values = np.divide(blocks, extreme, out=np.zeros_like(blocks), where=extreme != 0)
    plain = _codes(values, _PLAIN)
    plain_scale = np.full_like(extreme, 1 / _PLAIN)
    place, scale = _best(values, np.square(values) if counts is None else counts)
    codes = _codes(values, place)
    gain = _error(values, plain, plain_scale, counts) - _error(values, codes, scale, counts)
    better = gain > _LEAST_GAIN * _dot(values, values if counts is None else values * counts)
    np.copyto(codes, plain, where=~better)
    # The plain scale is a division by a power of two, hence exact.
    return codes, np.where(better, scale * extreme, extreme / np.float32(_PLAIN))


def _best(values: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """The candidate [blocks] that leaves the least error, and its scale in units of the extreme."""
    shape = values.shape[1]
    best, place, scale = np.zeros(shape, np.float32), np.full(shape, _PLAIN, np.float32), np.zeros(shape, np.float32)
    counted, codes, squared = values * counts, np.empty_like(values), np.empty_like(values)
    for candidate in (_PLAIN, *_CANDIDATES):
        _codes(values, candidate, codes)
        product, square = _dot(codes, counted), _dot(codes, np.multiply(codes, counts, out=squared))
        fitted = np.divide(product, square, out=np.zeros_like(product), where=square > 0)
        explained = product * fitted  # of the energy; the error is the rest
        better = explained > best
        np.copyto(best, explained, where=better)
        np.copyto(scale, fitted, where=better)
        place[better] = candidate
    return place, scale


def _codes(values: Floats, place: Floats | float, out: Floats | None = None) -> Floats:
    """Values in units of the extreme, rounded where the extreme falls on `place`."""
    codes: Floats = np.multiply(values, place, out=out, dtype=np.float32)
    np.rint(codes, out=codes)
    return np.clip(codes, LOWEST, HIGHEST, out=codes)


def _error(values: Floats, codes: Floats, scale: Floats, counts: Floats | None) -> Floats:
    missing = values - codes * scale
    return _dot(missing, missing if counts is None else missing * counts)


def _dot(one: Floats, other: Floats) -> Floats:
    """Per column."""
    product: Floats = np.einsum("kb,kb->b", one, other)
    return product


def _columns(rows: Floats, block: int) -> Floats:
    """Blocks as columns: [rows, K] -> [block, rows * K / block], so that arithmetic runs along many blocks at once."""
    return np.ascontiguousarray(rows.reshape(-1, block).T)


def _repeated(importance: Floats, rows: int) -> Floats:
    return np.broadcast_to(importance, (rows, importance.size))
