"""How a matrix W [rows, columns] lies in a tensor file at each precision, is multiplied, and weighs once loaded.

    fp32        `<name>` float32 [rows, columns]
    fp16, bf16  the same in two bytes; the session makes float32 of it when it loads and computes as at fp32
    int8        `<name>_q` uint8 [columns, rows/block, block], `<name>_s` float32 [columns, rows/block]; zero point 128
    int4        `<name>_q` uint8 [columns, rows/block, block/2], low nibble first, `<name>_s` alike; zero point 8

A block is 128 or 32 values that share a scale; the shape of the scales tells which. Activations of int8 and int4
become int8 per row and block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from onnx import NodeProto, TensorProto, helper

from expertmesh_common.bundle.parts import PRECISIONS
from expertmesh_common.bundle.tensors import BFLOAT16, TensorView
from expertmesh_common.errors import InvalidInput

__all__ = ["BLOCKS", "HALVES", "Matrix", "MatrixFormat", "common_block", "matrix_format"]

BLOCKS: Final = (128, 32)
HALVES: Final[Mapping[str, np.dtype[np.generic]]] = {"fp16": np.dtype(np.float16), "bf16": BFLOAT16}
"""Types of two bytes, by the precision that has them."""
_CONTRIB: Final = "com.microsoft"

Views = Mapping[str, TensorView]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix that multiplies rows [.., rows]; `block` is 0 where values have no scales."""

    name: str
    rows: int
    columns: int
    block: int = 0


def common_block(*inner_sizes: int) -> int:
    """The largest block that divides every size; 32 where none does, which then does not fit."""
    return next((block for block in BLOCKS if not any(size % block for size in inner_sizes)), BLOCKS[-1])


class MatrixFormat(ABC):
    """One precision."""

    step: ClassVar[int] = 1
    """Rows must be a multiple of it."""
    is_folded: ClassVar[bool] = False
    """The session has to fold constants when it loads."""

    @abstractmethod
    def key(self, name: str) -> str:
        """The tensor whose shape tells a matrix's size."""

    @abstractmethod
    def found(self, views: Views, name: str) -> Matrix | None:
        """What the file has under `name`; None if it has no such matrix at this precision."""

    @abstractmethod
    def tensors(self, matrix: Matrix) -> tuple[TensorView, ...]:
        """What the file must hold; offsets are 0, for the file decides them."""

    @abstractmethod
    def product(self, matrix: Matrix, left: str, out: str) -> list[NodeProto]:
        """Left [.., rows] @ matrix."""

    @abstractmethod
    def resident_bytes(self, matrix: Matrix) -> int:
        """What a session keeps of the matrix in memory."""


class _Plain(MatrixFormat):
    def __init__(self, dtype: np.dtype[np.generic]) -> None:
        self._dtype = dtype

    def key(self, name: str) -> str:
        return name

    def found(self, views: Views, name: str) -> Matrix | None:
        view = views.get(name)
        return None if view is None or len(view.shape) != 2 else Matrix(name, *view.shape)

    def tensors(self, matrix: Matrix) -> tuple[TensorView, ...]:
        return (_need(matrix.name, self._dtype, (matrix.rows, matrix.columns)),)

    def product(self, matrix: Matrix, left: str, out: str) -> list[NodeProto]:
        return [helper.make_node("MatMul", [left, matrix.name], [out])]

    def resident_bytes(self, matrix: Matrix) -> int:
        return 4 * matrix.rows * matrix.columns


class _Half(_Plain):
    """Stored in two bytes, folded to float32 when a session loads."""

    is_folded = True

    def product(self, matrix: Matrix, left: str, out: str) -> list[NodeProto]:
        wide = f"{matrix.name}_fp32"
        return [
            helper.make_node("Cast", [matrix.name], [wide], to=TensorProto.FLOAT),
            helper.make_node("MatMul", [left, wide], [out]),
        ]


class _Blocked(MatrixFormat):
    step = BLOCKS[-1]

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def key(self, name: str) -> str:
        return f"{name}_q"

    def found(self, views: Views, name: str) -> Matrix | None:
        codes, scales = views.get(f"{name}_q"), views.get(f"{name}_s")
        if codes is None or scales is None or len(codes.shape) != 3 or codes.shape[:2] != scales.shape:
            return None
        columns, blocks, in_block = codes.shape
        block = in_block * 8 // self._bits
        return Matrix(name, blocks * block, columns, block) if block in BLOCKS else None

    def tensors(self, matrix: Matrix) -> tuple[TensorView, ...]:
        size, in_block = (matrix.columns, matrix.rows // matrix.block), matrix.block * self._bits // 8
        return (
            _need(f"{matrix.name}_q", np.dtype(np.uint8), (*size, in_block)),
            _need(f"{matrix.name}_s", np.dtype(np.float32), size),
        )

    def product(self, matrix: Matrix, left: str, out: str) -> list[NodeProto]:
        # Level 4 multiplies in int8: 1.2 % off the dequantised product, far less than what 4 bits cost by themselves,
        # but up to 1.7 times as fast at few rows; and other levels round a lone row unlike one among others.
        return [
            helper.make_node(
                "MatMulNBits", [left, f"{matrix.name}_q", f"{matrix.name}_s"], [out], domain=_CONTRIB,
                K=matrix.rows, N=matrix.columns, bits=self._bits, block_size=matrix.block, accuracy_level=4,
            )
        ]  # fmt: skip

    def resident_bytes(self, matrix: Matrix) -> int:
        # The kernel keeps the scales it was given, a packed copy of them and one sum per block.
        codes, scales = self.tensors(matrix)
        return codes.size_bytes + 3 * scales.size_bytes


def _need(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> TensorView:
    return TensorView(name, dtype, shape, 0, int(np.prod(shape)) * dtype.itemsize)


_FORMATS: Final[Mapping[str, MatrixFormat]] = {
    "fp32": _Plain(np.dtype(np.float32)),
    **{name: _Half(dtype) for name, dtype in HALVES.items()},
    "int8": _Blocked(8),
    "int4": _Blocked(4),
}


def matrix_format(precision: str) -> MatrixFormat:
    """The format of a precision.

    Raises:
        InvalidInput: there is no such precision.

    """
    if precision not in _FORMATS:
        raise InvalidInput(f"precision {precision!r} is unknown: there are {', '.join(PRECISIONS)}")
    return _FORMATS[precision]
