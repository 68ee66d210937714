"""Going through a checkpoint without reading it: what is missing, misshapen or unknown is found before the hours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.importing.checkpoint import Checkpoint

__all__ = ["Outline", "refuse_strangers"]

# What some exporters write beside the weights: frequencies, which the config says too.
_NEVER_NEEDED = (r".*\.rotary_emb\.inv_freq",)


@dataclass(frozen=True, slots=True)
class Outline(Checkpoint):
    """Checks as the checkpoint itself would and remembers what was asked for; every value is zero and takes no room."""

    seen: set[str] = field(default_factory=set)

    def read(self, name: str, shape: tuple[int, ...], part: int | None = None) -> Floats:
        """Zeros of the shape that reading would give."""
        scales = self.scales_of(self.stored(name, shape))
        self.seen.update((name, scales.name) if scales else (name,))
        return _zeros(shape, part)

    def read_mxfp4(self, name: str, shape: tuple[int, ...], part: int | None = None) -> Floats:
        """Zeros of the shape that reading would give."""
        self.seen.update(tensor.name for tensor in self.packed(name, shape))
        return _zeros(shape, part)


def _zeros(shape: tuple[int, ...], part: int | None) -> Floats:
    return np.broadcast_to(np.float32(0), shape if part is None else shape[1:])


def refuse_strangers(outline: Outline, ignored: tuple[str, ...]) -> None:
    """Raise `UnsupportedModel` if the checkpoint holds tensors that nothing asked for, `ignored` patterns aside.

    They belong to a part that would be left out, so that the model would answer, but wrongly.
    """
    known = [re.compile(pattern) for pattern in (*_NEVER_NEEDED, *ignored)]
    rest = [name for name in outline.tensors if name not in outline.seen]
    strangers = [name for name in rest if not any(pattern.fullmatch(name) for pattern in known)]
    if strangers:
        raise UnsupportedModel(
            f"{outline.folder}: {len(strangers)} tensors belong to no part of this family that is known, first "
            f"{', '.join(sorted(strangers)[:3])}; the model would answer wrongly without them"
        )
