"""Writing a planned checkpoint into a blob store: one expert, one segment at a time, nothing kept but digests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.bundle.parts import Expert, ExpertBlob, Graph, Layer, Precision, Segment
from expertmesh_common.bundle.tensors import Array, read_views
from expertmesh_common.graphs.expert import ExpertShape, resident_bytes
from expertmesh_common.graphs.matrices import common_block
from expertmesh_common.graphs.trunk import segment_graph
from expertmesh_forge.bundling.tensor_files import put_tensors
from expertmesh_forge.formats import encode_embedding
from expertmesh_forge.importing.checkpoint import Checkpoint
from expertmesh_forge.importing.encoding import encode_in_slabs
from expertmesh_forge.importing.families.base import Family
from expertmesh_forge.importing.planning import ExpertPieces, LayerPlan, ModelPlan, Weights
from expertmesh_forge.importing.ranges import require_range
from expertmesh_forge.importing.resume import Step

__all__ = ["CheckpointWriter"]


@dataclass(frozen=True, slots=True)
class CheckpointWriter:
    """`on_piece` is called after every expert and every segment; an error that it raises ends the import."""

    source: Checkpoint
    family: Family
    plan: ModelPlan
    precisions: Sequence[Precision]
    blobs: BlobStore
    on_piece: Callable[[], None]

    def step(self, index: int) -> Step:
        """Segment `index` of the trunk, and the layer that it ends at unless it is the head."""
        segment = Segment(index=index, graphs=self._graphs(index))
        self.on_piece()
        layer = self._layer(index, self.plan.layers[index]) if index < len(self.plan.layers) else None
        return Step(segment=segment, layer=layer)

    def _graphs(self, index: int) -> dict[Precision, Graph]:
        weights = self._segment_weights(self.source, index)
        place, again = f"segment {index} of the trunk", partial(self._segment_weights, index=index)
        require_range(place, weights.matrices, self.precisions, self.source, again)
        if index == 0:
            weights.plain["embed"] = self.family.embedding(self.source)
        return {precision: self._graph(index, weights, precision) for precision in self.precisions}

    def _segment_weights(self, source: Checkpoint, index: int) -> Weights:
        """All but the embedding of the first one."""
        is_head = index == len(self.plan.layers)
        return self.family.head(source) if is_head else self.family.trunk(source, index)

    def _graph(self, index: int, weights: Weights, precision: Precision) -> Graph:
        tensors: dict[str, Array] = dict(weights.plain)
        if index == 0:
            tensors["embed"] = encode_embedding(weights.plain["embed"], precision)
        for name, matrix in weights.matrices.items():
            block = self._block(index) if name.startswith("shared_") else None
            tensors |= encode_in_slabs(name, matrix, precision, block)
        blob = put_tensors(self.blobs, tensors)
        views = read_views(self.blobs.path(blob.digest))
        graph = segment_graph(self.plan.trunk, index, precision, views, blob.digest)
        return Graph(graph=self.blobs.put(graph), weights=blob)

    def _layer(self, index: int, plan: LayerPlan) -> Layer:
        if plan.gate is None:
            return Layer(index=index, kind="dense", shared_width=plan.shared_width, total_width=plan.total_width)
        part = self.family.layer(self.source, index).below(*self.family.block)
        gate = plan.gate.gate(put_tensors(self.blobs, self.family.router(part)))
        # Nothing has been measured yet: every expert is as likely as another.
        frequency = min(1.0, gate.max_k / plan.experts)
        experts = []
        for number in range(plan.experts):
            blobs = self._expert(index, number)
            experts.append(Expert(index=number, width=plan.expert_width, frequency=frequency, blobs=blobs))
            self.on_piece()
        return Layer(
            index=index, kind="moe", gate=gate, shared_width=plan.shared_width, total_width=plan.total_width,
            experts=tuple(experts),
        )  # fmt: skip

    def _block(self, index: int) -> int:
        """Alike for shared and routed experts, so that a layer can be run as one product over all of them."""
        plan = self.plan.layers[index]
        return common_block(self.plan.hidden, plan.expert_width, plan.shared_width)

    def _pieces(self, source: Checkpoint, index: int, number: int) -> ExpertPieces:
        part = self.family.layer(source, index).below(*self.family.block)
        return self.family.expert(part, number)

    def _expert(self, index: int, number: int) -> dict[Precision, ExpertBlob]:
        width, block = self.plan.layers[index].expert_width, self._block(index)
        pieces = self._pieces(self.source, index, number)
        matrices = {"gate_up": np.concatenate([pieces.gate, pieces.up]), "down": pieces.down}
        place, again = f"layer {index}, expert {number}", partial(self._pieces, index=index, number=number)
        require_range(place, matrices, self.precisions, self.source, again)
        biases = _biases(pieces)
        blobs: dict[Precision, ExpertBlob] = {}
        for precision in self.precisions:
            tensors = dict(biases)
            for name, matrix in matrices.items():
                tensors |= encode_in_slabs(name, matrix, precision, block)
            blob = put_tensors(self.blobs, tensors)
            shape = ExpertShape(self.plan.hidden, width, precision, self.plan.activation)
            resident = resident_bytes(shape, read_views(self.blobs.path(blob.digest)))
            blobs[precision] = ExpertBlob(digest=blob.digest, size_bytes=blob.size_bytes, resident_bytes=resident)
        return blobs


def _biases(pieces: ExpertPieces) -> dict[str, Array]:
    if pieces.gate_bias is None or pieces.up_bias is None or pieces.down_bias is None:
        return {}
    return {"gate_up_bias": np.concatenate([pieces.gate_bias, pieces.up_bias]), "down_bias": pieces.down_bias}
