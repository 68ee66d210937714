"""What the gates inside a trunk's graphs saw in the last step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from expertmesh_controller.gateway.trunk.binding import value
from expertmesh_controller.gateway.trunk.executor import Floats

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue

__all__ = ["Scores"]


class Scores:
    """Buffers for what each session's gates saw, for up to `rows` rows; `held[i]` layers have theirs in session i."""

    def __init__(self, sessions: Sequence[InferenceSession], held: Sequence[int], rows: int) -> None:
        self._buffers: dict[int, Floats] = {}
        for at, (session, layers) in enumerate(zip(sessions, held, strict=True)):
            for output in session.get_outputs():
                if output.name == "scores":
                    self._buffers[at] = np.zeros((rows, layers, output.shape[1] // layers), np.float32)
        self._whole = bool(self._buffers) and len(self._buffers) == sum(bool(layers) for layers in held)
        self._columns = min((buffer.shape[2] for buffer in self._buffers.values()), default=0)

    def values(self, at: int, rows: slice) -> dict[str, OrtValue]:
        """What to bind for session `at`."""
        if at not in self._buffers:
            return {}
        buffer = self._buffers[at][rows]
        return {"scores": value(buffer.reshape(len(buffer), -1))}

    def of(self, rows: int) -> Floats | None:
        """Float32 [rows, held layers, columns]; None where there are none, or some layers have no such columns."""
        if not self._whole:
            return None
        parts = [buffer[:rows, :, : self._columns] for buffer in self._buffers.values()]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
