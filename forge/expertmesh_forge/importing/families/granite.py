"""Granite-MoE, also with a shared expert: four multipliers, folded into weights or the attention scale at import."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from expertmesh_common.graphs.trunk import AttentionShape
from expertmesh_forge.dense_model import Floats
from expertmesh_forge.importing.checkpoint import Checkpoint
from expertmesh_forge.importing.config import Values
from expertmesh_forge.importing.families.base import Family
from expertmesh_forge.importing.families.part import Part
from expertmesh_forge.importing.planning import ExpertPieces, GatePlan, Weights

__all__ = ["GraniteMoe", "GraniteMoeShared"]


class GraniteMoe(Family):
    """Top-k of the logits, softmax over the picked ones. Experts are fused: `input_linear`, `output_linear`."""

    model_type = "granitemoe"
    defaults: ClassVar[Values] = {
        "rms_norm_eps": 1e-6, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
    }  # fmt: skip
    block = ("block_sparse_moe",)
    router_names = ("router.layer.weight", "router.weight")

    def check(self) -> None:
        kind = "position_embedding_type"
        if self.config.has(kind) and self.config.text(kind) != "rope":
            raise self.unsupported(f"{kind} {self.config.text(kind)!r}", "rope is")

    def gate(self) -> GatePlan:
        return GatePlan("linear", self.picked(), "softmax")

    def attention_shape(self, layer: int) -> AttentionShape:
        return replace(super().attention_shape(layer), scale=self.config.number("attention_multiplier"))

    def embedding(self, source: Checkpoint) -> Floats:
        return super().embedding(source) * self._multiplier("embedding_multiplier")

    def _lm_head(self, source: Checkpoint) -> Floats:
        # The tied head is the embedding as it is stored, without the embedding's own multiplier.
        tied = self.config.flag("tie_word_embeddings")
        matrix = super().embedding(source) if tied else super()._lm_head(source)
        return matrix / np.float32(self.config.positive("logits_scaling"))

    def attention(self, part: Part, layer: int) -> Weights:
        weights, multiplier = super().attention(part, layer), self._multiplier("residual_multiplier")
        weights.matrices["o"] = weights.matrices["o"] * multiplier
        if "o_bias" in weights.plain:
            weights.plain["o_bias"] = weights.plain["o_bias"] * multiplier
        return weights

    def expert(self, part: Part, index: int) -> ExpertPieces:
        experts, width = self.experts()
        both = part.read(
            ("input_linear.weight", "experts.gate_up_proj"), experts, 2 * width, self.hidden, part=index
        )  # fmt: skip
        down = part.read(("output_linear.weight", "experts.down_proj"), experts, self.hidden, width, part=index)
        return ExpertPieces(both[:width], both[width:], down * self._multiplier("residual_multiplier"))

    def _multiplier(self, key: str) -> np.float32:
        return np.float32(self.config.number(key))


class GraniteMoeShared(GraniteMoe):
    """Beside the routed experts a shared one, fused as they are: `shared_mlp`."""

    model_type = "granitemoeshared"
    defaults: ClassVar[Values] = {**GraniteMoe.defaults, "shared_intermediate_size": 0}

    def shared_width(self) -> int:
        return self.config.count("shared_intermediate_size")

    def shared(self, part: Part) -> Weights:
        at, width = part.below("shared_mlp"), self.shared_width()
        both = at.read("input_linear.weight", 2 * width, self.hidden)
        down = at.read("output_linear.weight", self.hidden, width)
        return Weights({"shared_gate_up": both, "shared_down": down * self._multiplier("residual_multiplier")})
