"""Weights in 8-bit floats (E4M3) with one scale for every block of rows and columns, as DeepSeek-V3 is published."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.importing.config import CheckpointConfig
from expertmesh_forge.importing.shards import FP8_DTYPE, StoredTensor

__all__ = ["SCALES_SUFFIX", "Fp8Blocks", "fp8_blocks"]

SCALES_SUFFIX = "_scale_inv"
"""What the name of a tensor's scales adds to its own. Despite the name they multiply."""

_VALUES: Floats = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Fp8Blocks:
    """Blocks of `rows` x `columns` weights; those at the ends of a matrix may be smaller."""

    rows: int
    columns: int

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of weights [..., rows, columns]: one scale per block."""
        *outer, rows, columns = shape
        return (*outer, -(-rows // self.rows), -(-columns // self.columns))

    def dequantise(self, codes: NDArray[np.uint8], scales: Floats) -> Floats:
        """float32 weights of the shape of `codes` [..., rows, columns]; `scales` has the shape given above.

        Codes that are no number give NaN, and products beyond float32 infinity.
        """
        weights = np.empty(codes.shape, np.float32)
        with np.errstate(over="ignore"):
            for number in range(scales.shape[-2]):
                # One row of blocks at a time: looking values up makes a copy of the codes that is 8 times as large.
                rows = (..., slice(number * self.rows, (number + 1) * self.rows), slice(None))
                factors = np.repeat(scales[..., number, :], self.columns, axis=-1)[..., : codes.shape[-1]]
                np.multiply(_VALUES[codes[rows]], factors[..., None, :], out=weights[rows])
        return weights


def fp8_blocks(config: CheckpointConfig, tensor: StoredTensor) -> Fp8Blocks:
    """The blocks in which the config says that `tensor` is scaled.

    Raises:
        UnsupportedModel: it says nothing of scales, or has scales of another kind.
        SourceError: it holds values of the wrong kind.

    """
    said = config.section("quantization_config")
    method = said.text("quant_method") if said.has("quant_method") else None
    if method != "fp8":
        raise _unsupported(config, tensor, f"quant_method {method!r}, fp8 is read")
    # Not every program that writes such checkpoints says it; the tensor's own dtype does too.
    form = said.text("fmt") if said.has("fmt") else "e4m3"
    if form != "e4m3":
        raise _unsupported(config, tensor, f"fmt {form!r}, e4m3 is read")
    sizes = said.integers("weight_block_size")
    if len(sizes) != 2 or min(sizes) < 1 or len(tensor.shape) < 2:
        raise _unsupported(
            config, tensor, f"weight_block_size {list(sizes)}, blocks of matrices are read: [rows, columns]"
        )
    return Fp8Blocks(*sizes)


def _unsupported(config: CheckpointConfig, tensor: StoredTensor, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{tensor.file}: tensor {tensor.name} of shape {list(tensor.shape)} is {FP8_DTYPE}, and {config.path} says "
        f"{why}. Take the bf16 or fp16 form of this checkpoint"
    )
