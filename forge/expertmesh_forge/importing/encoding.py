"""Large matrices to a precision's form in slabs of rows: what encoding needs on the way is several times its input."""

from __future__ import annotations

import numpy as np

from expertmesh_common.bundle.manifest import Precision
from expertmesh_common.bundle.tensors import Array
from expertmesh_common.graphs.matrices import common_block
from expertmesh_forge.dense_model import Floats
from expertmesh_forge.formats import encode_matrix

__all__ = ["encode_in_slabs"]

_SLAB_BYTES = 8 * 2**20


def encode_in_slabs(name: str, weights: Floats, precision: Precision, block: int | None = None) -> dict[str, Array]:
    """What `encode_matrix` gives for float32 [out, in], whose rows are encoded each for itself."""
    rows, inner = weights.shape
    step = max(1, _SLAB_BYTES // (4 * inner))
    block = block or common_block(inner)
    whole: dict[str, Array] = {}
    for start in range(0, rows, step):
        for key, part in encode_matrix(name, weights[start : start + step], precision, block).items():
            if key not in whole:
                whole[key] = np.empty(_grown(part.shape, rows, is_turned=key == name), part.dtype)
            # A matrix without scales is stored as [in, out]: its rows are columns there.
            place = (slice(None), slice(start, start + step)) if key == name else slice(start, start + step)
            whole[key][place] = part
    return whole


def _grown(shape: tuple[int, ...], rows: int, *, is_turned: bool) -> tuple[int, ...]:
    return (shape[0], rows) if is_turned else (rows, *shape[1:])
