"""Looking on while a text is read in: the rows that go to the experts of every layer."""

from __future__ import annotations

from typing import Protocol

from expertmesh_controller.gateway.trunk.executor import Floats

__all__ = ["ChunkTap", "Tap"]


class Tap(Protocol):
    """Who looks on. Called in the engine's thread, so it must be quick; a step that is run again calls it again."""

    def take(self, layer: int, first: int, rows: Floats) -> None:
        """`rows` float32 [T, hidden] of layer `layer` belong to the tokens from `first` on; valid during the call."""
        ...


class ChunkTap:
    """A tap on one step: its chunk's rows lie behind `decoding` rows of other requests."""

    def __init__(self, tap: Tap, first: int, decoding: int) -> None:
        self._tap, self._first, self._decoding = tap, first, decoding

    def rows(self, layer: int, rows: Floats) -> None:
        self._tap.take(layer, self._first, rows[self._decoding :])
