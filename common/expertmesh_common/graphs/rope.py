"""Tables of rotary positions, from what a bundle says of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.bundle.parts import Rope

__all__ = ["Table", "rope_tables", "rope_tables_of"]

Table = NDArray[np.float32]


def rope_tables(rope_base: float, head_dim: int, context_tokens: int) -> tuple[Table, Table]:
    """Cosines and sines of plain rotary positions, float32 [context_tokens, head_dim / 2]."""
    frequencies = rope_base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return rope_tables_of(Rope(inverse_frequencies=tuple(frequencies.tolist())), context_tokens)


def rope_tables_of(rope: Rope, context_tokens: int) -> tuple[Table, Table]:
    """The inputs `rope_cos` and `rope_sin` of layer segments, float32 [context_tokens, pairs], times `rope.factor`."""
    # Angles grow with the position, so float32 would turn late tokens by a rounding error.
    frequencies = np.asarray(rope.inverse_frequencies, np.float64)
    angles = np.outer(np.arange(context_tokens, dtype=np.float64), frequencies)
    return (rope.factor * np.cos(angles)).astype(np.float32), (rope.factor * np.sin(angles)).astype(np.float32)
