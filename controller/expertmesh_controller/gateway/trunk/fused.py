"""The whole model in this process as one call: trunk and experts joined into one graph, for `numerics: fast`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Layer, Precision
from expertmesh_common.bundle.tensors import Array, read_tensors
from expertmesh_common.graphs.fusing import require_fusable
from expertmesh_common.graphs.local_experts import Stacked, stack
from expertmesh_common.graphs.stitching import join
from expertmesh_controller.gateway.trunk.binding import bind, require_context, rope_inputs, value
from expertmesh_controller.gateway.trunk.cache import KeyValuePool
from expertmesh_controller.gateway.trunk.executor import Chunk, Floats, Sequences, TrunkLimits, Work
from expertmesh_controller.gateway.trunk.sessions import open_graph, open_head

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding, OrtValue

__all__ = ["FusedTrunk"]


class FusedTrunk(Sequences):
    """One session for all layers, one for the head. Decode calls are bound once per batch size, chunk calls per chunk.

    Raises:
        InvalidInput: the model cannot be fused, has no such precision, or a shorter context than asked for.

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
        require_fusable(bundle.manifest, precision)
        trunk, self._layers = bundle.manifest.trunk, bundle.manifest.layers
        require_context(bundle, context_tokens)
        self.limits = TrunkLimits(
            len(self._layers), trunk.hidden, trunk.vocabulary, slots, context_tokens, chunk_tokens
        )
        self._head_session = open_head(bundle, precision, threads)
        self._session = _open(bundle, precision, threads)
        self._rope = rope_inputs(trunk, context_tokens)
        self._pool = KeyValuePool(len(self._layers), slots, trunk.kv_heads, context_tokens, trunk.head_dim)
        self._allocate(slots + chunk_tokens)
        self._batch = self._rows = 0
        self._decode: dict[int, IOBinding] = {}
        self._heads: dict[int, IOBinding] = {}

    def run(self, work: Work) -> Floats:
        """One step: logits float32 [work.logit_rows, vocabulary], a view that the next call overwrites."""
        batch = self._batch = len(work.decode_ids)
        self._rows = work.rows
        if batch:
            self._ids[:batch], self._lengths[:batch] = work.decode_ids, work.decode_cached
            self._longest[...] = work.decode_cached.max() + 1
            self._session.run_with_iobinding(self._decoding(batch))
        if work.chunk is not None:
            self._session.run_with_iobinding(self._bind_chunk(work.chunk, batch))
        wanted = work.logit_rows
        self._head_rows(slice(0, batch), slice(0, batch))
        if wanted > batch:
            self._head_rows(slice(batch, wanted), slice(self._rows - 1, self._rows))
        return self._head(wanted)

    def scores(self) -> Floats | None:
        """What the gates saw in the last step, float32 [rows, routed layers, experts]; None for a dense model."""
        return None if self._scores is None else self._scores[: self._rows].reshape(self._rows, self._routed, -1)

    def chunk_logits(self, first: int, count: int) -> Floats:
        start = self._batch + first
        self._head_rows(slice(0, count), slice(start, start + count))
        return self._head(count)

    def move(self, source: int, target: int, tokens: int) -> None:
        self._pool.move(source, target, tokens)

    def _head_rows(self, target: slice, source: slice) -> None:
        self._head_residual[target], self._head_combined[target] = self._residual[source], self._combined[source]

    def _head(self, rows: int) -> Floats:
        if rows:
            binding = self._heads.get(rows)
            if binding is None:
                buffers = {"residual": self._head_residual, "combined": self._head_combined, "logits": self._logits}
                values = {name: value(buffer[:rows, None]) for name, buffer in buffers.items()}
                binding = self._heads[rows] = bind(self._head_session, values)
            self._head_session.run_with_iobinding(binding)
        return self._logits[:rows]

    def _allocate(self, rows: int) -> None:
        limits = self.limits
        self._ids = np.zeros(rows, np.int64)
        self._residual, self._combined = (np.zeros((rows, limits.hidden), np.float32) for _ in range(2))
        self._routed = sum(layer.gate is not None for layer in self._layers)
        self._scores: Floats | None = None
        for output in self._session.get_outputs():
            if output.name == "scores":
                self._scores = np.zeros((rows, *output.shape[1:]), np.float32)
        self._lengths, self._longest = np.zeros(limits.slots, np.int32), np.zeros((), np.int32)
        self._chunk_length, self._chunk_total = np.zeros(1, np.int32), np.zeros((), np.int32)
        self._head_residual = np.zeros((limits.head_rows, limits.hidden), np.float32)
        self._head_combined = np.zeros_like(self._head_residual)
        self._logits = np.zeros((limits.head_rows, limits.vocabulary), np.float32)

    def _decoding(self, batch: int) -> IOBinding:
        binding = self._decode.get(batch)
        if binding is None:
            values = self._buffers(slice(0, batch), (batch, 1))
            values |= {"seqlens_k": value(self._lengths[:batch]), "total_sequence_length": value(self._longest)}
            binding = self._decode[batch] = bind(self._session, values | self._caches(0, batch))
        return binding

    def _bind_chunk(self, chunk: Chunk, first_row: int) -> IOBinding:
        count = len(chunk.token_ids)
        self._ids[first_row : first_row + count] = chunk.token_ids
        self._chunk_length[...], self._chunk_total[...] = chunk.start + count - 1, chunk.start + count
        values = self._buffers(slice(first_row, first_row + count), (1, count))
        values |= {"seqlens_k": value(self._chunk_length), "total_sequence_length": value(self._chunk_total)}
        return bind(self._session, values | self._caches(chunk.slot, 1))

    def _buffers(self, rows: slice, shape: tuple[int, int]) -> dict[str, OrtValue]:
        wide = {"residual_out": self._residual, "combined_out": self._combined}
        found = {name: value(buffer[rows].reshape(*shape, -1)) for name, buffer in wide.items()}
        if self._scores is not None:
            found["scores"] = value(self._scores[rows])
        return found | {"token_ids": value(self._ids[rows].reshape(shape))} | self._rope

    def _caches(self, first_slot: int, slots: int) -> dict[str, OrtValue]:
        found = {}
        for layer in range(self.limits.layers):
            for kind, block in zip(("key", "value"), self._pool.slots(layer, first_slot, slots), strict=True):
                found[f"past_{kind}_{layer}"] = found[f"present_{kind}_{layer}"] = value(block)
        return found


def _open(bundle: Bundle, precision: Precision, threads: int) -> InferenceSession:
    stacked = [_stacked(bundle, layer, precision) for layer in bundle.manifest.layers]
    segments = [bundle.path(s.graphs[precision].graph).read_bytes() for s in bundle.manifest.trunk.segments[:-1]]
    graph = join(segments, [None if s is None else s.block for s in stacked])
    memory: dict[str, Array] = {}
    for index, layer in enumerate(stacked):
        if layer is not None:
            memory |= {f"l{index}_{name}": array for name, array in layer.values.items()}
    for segment in bundle.manifest.trunk.segments:
        bundle.path(segment.graphs[precision].weights)  # verified before the runtime maps it
    return open_graph(graph, bundle, threads, memory, spins=threads > 1)


def _stacked(bundle: Bundle, layer: Layer, precision: Precision) -> Stacked | None:
    if layer.gate is None:
        return None
    manifest = bundle.manifest
    return stack(
        layer, precision, manifest.trunk.activation,
        router=read_tensors(bundle.path(layer.gate.weights)),
        experts=[read_tensors(bundle.path(expert.blobs[precision])) for expert in layer.experts],
        trunk=read_tensors(bundle.path(manifest.trunk.segments[layer.index].graphs[precision].weights)),
    )  # fmt: skip
