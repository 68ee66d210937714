"""The trunk in this process, on ONNX Runtime: prebound calls over buffers that never move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Precision
from expertmesh_controller.gateway.trunk.binding import bind, require_context, rope_inputs, value
from expertmesh_controller.gateway.trunk.cache import KeyValuePool
from expertmesh_controller.gateway.trunk.executor import Chunk, Floats, TrunkExecutor, TrunkLimits, Work
from expertmesh_controller.gateway.trunk.sessions import open_segments

if TYPE_CHECKING:
    from onnxruntime import IOBinding, OrtValue

__all__ = ["LocalTrunk"]

_NOTHING = Work(np.empty(0, np.int64), np.empty(0, np.int32))


class LocalTrunk(TrunkExecutor):
    """One session per segment. Decode calls are bound once per (segment, batch size), chunk calls per chunk.

    Rows lie one after the other in shared buffers, decode rows first, so that the experts of a layer see one block.

    Raises:
        InvalidInput: the model has no such precision, or a shorter context than asked for.

    """

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision,
        *,
        slots: int = 16,
        context_tokens: int = 2048,
        chunk_tokens: int = 256,
        threads: int = 1,
    ) -> None:
        trunk = bundle.manifest.trunk
        require_context(bundle, context_tokens)
        layers = len(trunk.segments) - 1
        self.limits = TrunkLimits(layers, trunk.hidden, trunk.vocabulary, slots, context_tokens, chunk_tokens)
        self._sessions = open_segments(bundle, precision, threads)
        self._rope = rope_inputs(trunk, context_tokens)
        self._pool = KeyValuePool(layers, slots, trunk.kv_heads, context_tokens, trunk.head_dim)
        self._allocate(slots + chunk_tokens)
        self._work = _NOTHING
        self._decode: dict[tuple[int, int], IOBinding] = {}
        self._chunk: list[IOBinding] = []

    def begin(self, work: Work) -> Floats:
        self._work = work
        batch = len(work.decode_ids)
        self._ids[:batch] = work.decode_ids
        self._lengths[:batch] = work.decode_cached  # after this token the cache holds one more: that, minus one
        if batch:
            self._longest[...] = work.decode_cached.max() + 1
        if work.chunk is not None:
            self._place(work.chunk, batch)
        return self._run_layer(0)

    def advance(self, layer: int, combined: Floats) -> Floats:
        self._combined[: self._work.rows] = combined
        return self._run_layer(layer)

    def finish(self, combined: Floats) -> Floats:
        work, residual = self._work, self._residuals[self.limits.layers % 2]
        batch, wanted = len(work.decode_ids), work.logit_rows
        self._head_residual[:batch], self._head_combined[:batch] = residual[:batch], combined[:batch]
        if wanted > batch:
            self._head_residual[batch], self._head_combined[batch] = residual[work.rows - 1], combined[work.rows - 1]
        if work.chunk is not None:
            self._combined[: work.rows] = combined  # `chunk_logits` may ask for more of its rows
        if wanted:
            self._run_bound(self.limits.layers, wanted)
        return self._logits[:wanted]

    def chunk_logits(self, first: int, count: int) -> Floats:
        start = len(self._work.decode_ids) + first
        rows, residual = slice(start, start + count), self._residuals[self.limits.layers % 2]
        self._head_residual[:count], self._head_combined[:count] = residual[rows], self._combined[rows]
        self._run_bound(self.limits.layers, count)
        return self._logits[:count]

    def move(self, source: int, target: int, tokens: int) -> None:
        self._pool.move(source, target, tokens)

    def _allocate(self, rows: int) -> None:
        limits = self.limits
        self._ids = np.zeros(rows, np.int64)
        self._residuals = (np.zeros((rows, limits.hidden), np.float32), np.zeros((rows, limits.hidden), np.float32))
        self._rows = np.zeros((rows, limits.hidden), np.float32)
        self._combined = np.zeros((rows, limits.hidden), np.float32)
        self._lengths, self._longest = np.zeros(limits.slots, np.int32), np.zeros((), np.int32)
        self._chunk_length, self._chunk_total = np.zeros(1, np.int32), np.zeros((), np.int32)
        self._head_residual = np.zeros((limits.head_rows, limits.hidden), np.float32)
        self._head_combined = np.zeros_like(self._head_residual)
        self._logits = np.zeros((limits.head_rows, limits.vocabulary), np.float32)

    def _place(self, chunk: Chunk, first_row: int) -> None:
        count = len(chunk.token_ids)
        self._ids[first_row : first_row + count] = chunk.token_ids
        self._chunk_length[...], self._chunk_total[...] = chunk.start + count - 1, chunk.start + count
        counts = {"seqlens_k": self._chunk_length, "total_sequence_length": self._chunk_total}
        rows = slice(first_row, first_row + count)
        shared = {name: value(buffer) for name, buffer in counts.items()}
        shared |= {name: value(buffer[rows][None]) for name, buffer in self._row_buffers().items()}
        self._chunk = [self._bind_layer(layer, shared, chunk.slot, 1) for layer in range(self.limits.layers)]

    def _run_layer(self, layer: int) -> Floats:
        batch = len(self._work.decode_ids)
        if batch:
            self._run_bound(layer, batch)
        if self._work.chunk is not None:
            self._sessions[layer].run_with_iobinding(self._chunk[layer])
        return self._rows[: self._work.rows]

    def _run_bound(self, segment: int, batch: int) -> None:
        binding = self._decode.get((segment, batch))
        if binding is None:
            binding = self._decode[segment, batch] = self._bind_decode(segment, batch)
        self._sessions[segment].run_with_iobinding(binding)

    def _bind_decode(self, segment: int, batch: int) -> IOBinding:
        if segment == self.limits.layers:
            buffers = {"residual": self._head_residual, "combined": self._head_combined, "logits": self._logits}
            return bind(self._sessions[segment], {name: value(b[:batch, None]) for name, b in buffers.items()})
        shared = {name: value(buffer[:batch, None]) for name, buffer in self._row_buffers().items()}
        shared |= {"seqlens_k": value(self._lengths[:batch]), "total_sequence_length": value(self._longest)}
        return self._bind_layer(segment, shared, 0, batch)

    def _row_buffers(self) -> dict[str, np.ndarray[Any, Any]]:
        even, odd = self._residuals
        return {"token_ids": self._ids, "even": even, "odd": odd, "combined": self._combined, "rows": self._rows}

    def _bind_layer(self, layer: int, shared: Mapping[str, OrtValue], first_slot: int, slots: int) -> IOBinding:
        keys, values = (value(block) for block in self._pool.slots(layer, first_slot, slots))
        # Residuals alternate between two buffers: a segment reads one and writes the other.
        source, target = ("odd", "even") if layer % 2 else ("even", "odd")
        cache = {"past_key": keys, "present_key": keys, "past_value": values, "present_value": values}
        residuals = {"residual": shared[source], "residual_out": shared[target]}
        return bind(self._sessions[layer], {**shared, **cache, **self._rope, **residuals})
