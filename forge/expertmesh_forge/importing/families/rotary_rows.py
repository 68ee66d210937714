"""Rows of a projection from interleaved rotary order to the half-rotated one that every bundle has."""

from __future__ import annotations

import numpy as np

from expertmesh_forge.dense_model import Floats

__all__ = ["halves_first"]


def halves_first(rows: Floats) -> Floats:
    """Rows [..., n, inner] whose neighbours 2i and 2i + 1 turn together -> i and i + n/2 do."""
    return np.concatenate([rows[..., 0::2, :], rows[..., 1::2, :]], axis=-2)
