"""OLMoE: norms over the whole width of queries and keys."""

from __future__ import annotations

from typing import ClassVar

from expertmesh_forge.importing.config import Values
from expertmesh_forge.importing.families.base import Family
from expertmesh_forge.importing.families.part import Part
from expertmesh_forge.importing.planning import GatePlan, Weighting, Weights

__all__ = ["Olmoe"]


class Olmoe(Family):
    """Softmax over all experts, renormalised or not."""

    model_type = "olmoe"
    defaults: ClassVar[Values] = {"rms_norm_eps": 1e-5, "norm_topk_prob": False}
    experts_keys = ("num_experts", "num_local_experts")

    def check(self) -> None:
        if self.config.has("clip_qkv"):
            raise self.unsupported(f"clip_qkv {self.config.number('clip_qkv')}", "clipping is not part of the trunk")

    def gate(self) -> GatePlan:
        weighting: Weighting = "normalised" if self.config.flag("norm_topk_prob") else "score"
        return GatePlan("softmax", self.picked(), weighting)

    def attention(self, part: Part, layer: int) -> Weights:
        at = part.below("self_attn")
        widths = {"q": self.heads * self.head_dim, "k": self.kv_heads * self.head_dim}
        norms = {f"{name}_norm_whole": at.read(f"{name}_norm.weight", width) for name, width in widths.items()}
        return super().attention(part, layer) | Weights(plain=norms)
