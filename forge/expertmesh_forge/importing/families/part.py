"""A part of a checkpoint: the tensors below a name, whichever of its known spellings the checkpoint uses."""

from __future__ import annotations

from dataclasses import dataclass

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.importing.checkpoint import Checkpoint

__all__ = ["Part"]

Names = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """`prefixes` are the spellings, each ending in a dot or empty. Readers raise as `Checkpoint.read` does."""

    source: Checkpoint
    prefixes: tuple[str, ...]

    def below(self, *names: str) -> Part:
        """The part with one of these names inside this one."""
        return Part(self.source, tuple(f"{prefix}{name}." for prefix in self.prefixes for name in names))

    def has(self, names: Names) -> bool:
        return any(self.source.has(name) for name in self._spellings(names))

    def read(self, names: Names, *shape: int, part: int | None = None) -> Floats:
        """A tensor of `shape` as float32, or item `part` along its first axis."""
        return self.source.read(self.source.first(self._spellings(names)), shape, part)

    def read_mxfp4(self, name: str, *shape: int, part: int | None = None) -> Floats:
        """A packed tensor of `shape` as float32, or item `part` along its first axis; `name` without its endings."""
        codes = self.source.first(self._spellings(f"{name}_blocks"))
        return self.source.read_mxfp4(codes.removesuffix("_blocks"), shape, part)

    def _spellings(self, names: Names) -> tuple[str, ...]:
        each = (names,) if isinstance(names, str) else names
        return tuple(prefix + name for prefix in self.prefixes for name in each)
