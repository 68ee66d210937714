"""Weights that 16 bits cannot hold, said before anything of their piece is written, and with the tensor they are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from expertmesh_common.bundle.manifest import Precision
from expertmesh_common.bundle.tensors import BFLOAT16
from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import BadWeights
from expertmesh_forge.importing.checkpoint import Checkpoint

__all__ = ["require_range"]

_HALVES: Mapping[str, np.dtype[np.generic]] = {"fp16": np.dtype(np.float16), "bf16": BFLOAT16}
_INSTEAD = {"fp16": "fp32 or bf16", "bf16": "fp32"}


def require_range(
    place: str,
    matrices: Mapping[str, Floats],
    precisions: Sequence[Precision],
    source: Checkpoint,
    read_again: Callable[[Checkpoint], object],
) -> None:
    """Raise `BadWeights` if one of the matrices of `place` holds a weight that one of `precisions` cannot.

    `read_again` reads the matrices from a checkpoint once more, which happens only to find the tensor for the error.
    """
    halves = [precision for precision in precisions if precision in _HALVES]
    for name, matrix in matrices.items() if halves else ():
        peak = _peak(matrix)
        for precision in halves:
            if not _holds(precision, peak):
                raise BadWeights(
                    f"{place}: matrix {name} has values up to {peak:.3g}{_origin(source, read_again, peak)}, "
                    f"which {precision} cannot hold; use {_INSTEAD[precision]}"
                )


def _peak(values: Floats) -> np.float32:
    return np.float32(max(values.max(), -values.min()))


def _holds(precision: Precision, peak: np.float32) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(peak.astype(_HALVES[precision]).astype(np.float32)))


def _origin(source: Checkpoint, read_again: Callable[[Checkpoint], object], peak: np.float32) -> str:
    """Empty where no tensor has that value itself, as after a multiplier of the family."""
    noting = _Noting(source.folder, source.config, source.tensors, source.digest, source)
    read_again(noting)
    name = next((name for name, own in noting.peaks.items() if own == peak), None)
    return f" (tensor {name} of {source.tensors[name].file})" if name else ""


@dataclass(frozen=True, slots=True)
class _Noting(Checkpoint):
    """Reads from `source`, and notes the largest magnitude in every tensor."""

    source: Checkpoint
    peaks: dict[str, np.float32] = field(default_factory=dict)

    def read(self, name: str, shape: tuple[int, ...], part: int | None = None) -> Floats:
        return self._noted(name, self.source.read(name, shape, part))

    def read_mxfp4(self, name: str, shape: tuple[int, ...], part: int | None = None) -> Floats:
        return self._noted(f"{name}_blocks", self.source.read_mxfp4(name, shape, part))

    def _noted(self, name: str, values: Floats) -> Floats:
        self.peaks[name] = _peak(values)
        return values
