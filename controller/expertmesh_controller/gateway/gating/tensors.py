"""Arrays as messages."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from expertmesh_api.v1 import common_pb2


def to_tensor(name: str, values: NDArray[Any]) -> common_pb2.Tensor:
    """An array as a message: raw little-endian bytes, dtype and shape."""
    return common_pb2.Tensor(name=name, dtype=values.dtype.name, shape=values.shape, data=values.tobytes())
