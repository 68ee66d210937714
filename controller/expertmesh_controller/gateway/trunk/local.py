"""The trunk in this process, on ONNX Runtime: prebound calls over buffers that never move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Precision
from expertmesh_common.graphs.fusing import require_fusable
from expertmesh_controller.gateway.trunk.binding import bind, require_context, rope_inputs, value
from expertmesh_controller.gateway.trunk.cache import KeyValuePool
from expertmesh_controller.gateway.trunk.executor import Chunk, Floats, TrunkExecutor, TrunkLimits, Work
from expertmesh_controller.gateway.trunk.runs import runs_of
from expertmesh_controller.gateway.trunk.scores import Scores
from expertmesh_controller.gateway.trunk.sessions import open_head, open_run

if TYPE_CHECKING:
    from onnxruntime import IOBinding, OrtValue

__all__ = ["LocalTrunk"]

_NOTHING = Work(np.empty(0, np.int64), np.empty(0, np.int32))


class LocalTrunk(TrunkExecutor):
    """One session per run of layers between two `stops`, one for the head; every layer is a stop by default.

    Decode calls are bound once per (run, batch size), chunk calls per chunk. Rows lie one after the other in shared
    buffers, decode rows first, so that the experts of a layer see one block. The routed experts of layers that are no
    stops are in the graphs.

    Raises:
        InvalidInput: the model has no such precision, a layer that is no stop has no fused form, or the context is
            shorter than asked for.

    """

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision,
        *,
        stops: Sequence[int] | None = None,
        slots: int = 16,
        context_tokens: int = 2048,
        chunk_tokens: int = 256,
        threads: int = 1,
    ) -> None:
        trunk, layers = bundle.manifest.trunk, len(bundle.manifest.layers)
        require_context(bundle, context_tokens)
        self.stops = tuple(range(layers) if stops is None else stops)
        require_fusable(bundle.manifest, precision, set(range(layers)) - set(self.stops))
        self.limits = TrunkLimits(layers, trunk.hidden, trunk.vocabulary, slots, context_tokens, chunk_tokens)
        self._runs = runs_of(layers, self.stops)
        self._run_at = {run.last: at for at, run in enumerate(self._runs)}
        self._sessions = [open_run(bundle, run, precision, threads) for run in self._runs]
        self._head_session = open_head(bundle, precision, threads)
        held = {layer.index for layer in bundle.manifest.layers if layer.gate is not None} - set(self.stops)
        self._scores = Scores(self._sessions, [len(held & {*run.layers}) for run in self._runs], slots + chunk_tokens)
        self._rope = rope_inputs(trunk, context_tokens)
        self._pool = KeyValuePool(layers, slots, trunk.kv_heads, context_tokens, trunk.head_dim)
        self._allocate(slots + chunk_tokens)
        self._work = _NOTHING
        self._decode: dict[tuple[int, int], IOBinding] = {}
        self._heads: dict[int, IOBinding] = {}
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
        return self._call(0)

    def advance(self, layer: int, combined: Floats) -> Floats:
        self._combined[: self._work.rows] = combined
        return self._call(self._run_at[layer])

    def finish(self, combined: Floats | None = None) -> Floats:
        work = self._work
        if combined is not None and (work.chunk is not None or not self._runs[-1].asks):
            self._combined[: work.rows] = combined  # `chunk_logits` may ask for more of its rows
        if not self._runs[-1].asks:
            combined = self._call(len(self._runs) - 1) if self.stops else self._rows
        assert combined is not None, "the experts of the last layer were asked for"
        batch, wanted = len(work.decode_ids), work.logit_rows
        self._head_residual[:batch], self._head_combined[:batch] = self._residual[:batch], combined[:batch]
        if wanted > batch:
            last = work.rows - 1
            self._head_residual[batch], self._head_combined[batch] = self._residual[last], combined[last]
        return self._head(wanted)

    def scores(self) -> Floats | None:
        return self._scores.of(self._work.rows)

    def chunk_logits(self, first: int, count: int) -> Floats:
        start = len(self._work.decode_ids) + first
        rows, combined = slice(start, start + count), self._combined if self._runs[-1].asks else self._rows
        self._head_residual[:count], self._head_combined[:count] = self._residual[rows], combined[rows]
        return self._head(count)

    def move(self, source: int, target: int, tokens: int) -> None:
        self._pool.move(source, target, tokens)

    @property
    def _residual(self) -> Floats:
        """What the last run left for the head."""
        return self._residuals[len(self._runs) % 2]

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
        self._chunk = [self._bind(at, shared, rows, chunk.slot, 1) for at in range(len(self._runs))]

    def _call(self, at: int) -> Floats:
        """Run `at` for all rows of the step; returns what it left for experts elsewhere, or for the head."""
        batch = len(self._work.decode_ids)
        if batch:
            binding = self._decode.get((at, batch))
            if binding is None:
                binding = self._decode[at, batch] = self._bind_decode(at, batch)
            self._sessions[at].run_with_iobinding(binding)
        if self._work.chunk is not None:
            self._sessions[at].run_with_iobinding(self._chunk[at])
        return self._rows[: self._work.rows]

    def _head(self, rows: int) -> Floats:
        if rows:
            binding = self._heads.get(rows)
            if binding is None:
                binding = self._heads[rows] = self._bind_head(rows)
            self._head_session.run_with_iobinding(binding)
        return self._logits[:rows]

    def _bind_head(self, rows: int) -> IOBinding:
        buffers = {"residual": self._head_residual, "combined": self._head_combined, "logits": self._logits}
        return bind(self._head_session, {name: value(b[:rows, None]) for name, b in buffers.items()})

    def _bind_decode(self, at: int, batch: int) -> IOBinding:
        shared = {name: value(buffer[:batch, None]) for name, buffer in self._row_buffers().items()}
        shared |= {"seqlens_k": value(self._lengths[:batch]), "total_sequence_length": value(self._longest)}
        return self._bind(at, shared, slice(0, batch), 0, batch)

    def _row_buffers(self) -> dict[str, np.ndarray[Any, Any]]:
        even, odd = self._residuals
        # A last run leaves its sum where others leave rows: it may still be reading `combined`.
        return {
            "token_ids": self._ids, "even": even, "odd": odd,
            "combined": self._combined, "rows": self._rows, "combined_out": self._rows,
        }  # fmt: skip

    def _bind(self, at: int, shared: Mapping[str, OrtValue], rows: slice, first_slot: int, slots: int) -> IOBinding:
        # Residuals alternate between two buffers: a run reads one and writes the other.
        source, target = ("odd", "even") if at % 2 else ("even", "odd")
        residuals = {"residual": shared[source], "residual_out": shared[target]}
        values = {**shared, **self._caches(at, first_slot, slots), **self._rope, **residuals}
        return bind(self._sessions[at], values | self._scores.values(at, rows))

    def _caches(self, at: int, first_slot: int, slots: int) -> dict[str, OrtValue]:
        """Under the names of a joined graph, and of a segment alone."""
        found = {}
        for layer in self._runs[at].layers:
            for kind, block in zip(("key", "value"), self._pool.slots(layer, first_slot, slots), strict=True):
                cache = value(block)
                for when in ("past", "present"):
                    found[f"{when}_{kind}_{layer}"] = found[f"{when}_{kind}"] = cache
        return found
