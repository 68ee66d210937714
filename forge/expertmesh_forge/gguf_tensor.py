"""A tensor as it lies in a GGUF file, dequantised when it is read and not before.

Only what is asked for is read, with plain reads: a map of the file would count against this process's memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import gguf
import numpy as np

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import BadWeights, UnsupportedModel

__all__ = ["GgufTensor"]

# Rows are dequantised in steps of about this many values: the library needs several times their room.
_STEP_VALUES = 2**20


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`name` is the file's own; `shape` counts values, [out, in]; `offset` counts bytes from the file's start."""

    name: str
    file: Path
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        block, block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block * block_bytes

    def item(self, index: int) -> GgufTensor:
        """Item `index` along the first axis: one expert of a stack. Rows, and so blocks of values, stay whole."""
        one = replace(self, name=f"{self.name}[{index}]", shape=self.shape[1:])
        return replace(one, offset=self.offset + index * one.size_bytes)

    def require_readable(self) -> None:
        """Raise `UnsupportedModel` if values of this kind cannot be dequantised."""
        if not _is_readable(self.kind):
            raise UnsupportedModel(
                f"{self.file}: tensor {self.name} is {self.kind.name}, which is not read; "
                "take the model in F16, BF16, Q8_0 or another common format"
            )

    def read(self) -> Floats:
        """float32 of `shape`.

        Raises:
            BadWeights: the file ended early, or the tensor holds NaN or infinity.

        """
        width = self.shape[-1]
        values = np.empty((math.prod(self.shape[:-1]), width), np.float32)
        step = max(1, _STEP_VALUES // width)
        for start in range(0, len(values), step):
            rows = values[start : start + step]
            rows[:] = self._dequantised(start, len(rows))
            if not np.isfinite(rows).all():
                raise BadWeights(
                    f"{self.file}: tensor {self.name!r} holds NaN or infinity; "
                    "the model is damaged, get it from its publisher again"
                )
        return values.reshape(self.shape)

    def _dequantised(self, start: int, count: int) -> Floats:
        row_bytes = replace(self, shape=self.shape[-1:]).size_bytes
        found = np.fromfile(self.file, np.uint8, count * row_bytes, offset=self.offset + start * row_bytes)
        if len(found) != count * row_bytes:
            raise BadWeights(f"{self.file} is truncated: it ends inside tensor {self.name!r}; download it again")
        with np.errstate(all="ignore"):  # damaged scales are said to be so by the caller
            rows: Floats = gguf.quants.dequantize(found.reshape(count, row_bytes), self.kind)
        return rows


@cache
def _is_readable(kind: gguf.GGMLQuantizationType) -> bool:
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
