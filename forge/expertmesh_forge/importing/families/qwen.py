"""Qwen2-MoE and Qwen3-MoE: softmax over all experts, renormalised or not, between layers that may be dense."""

from __future__ import annotations

from typing import ClassVar

from expertmesh_forge.importing.config import Values
from expertmesh_forge.importing.families.base import Family
from expertmesh_forge.importing.families.fitting import attention_kinds
from expertmesh_forge.importing.families.part import Part
from expertmesh_forge.importing.planning import GatePlan, Weighting, Weights

__all__ = ["Qwen2Moe", "Qwen3Moe"]


class _Qwen(Family):
    experts_keys = ("num_experts", "num_local_experts")
    width_key = "moe_intermediate_size"
    quantised = ("fp8",)

    def gate(self) -> GatePlan:
        weighting: Weighting = "normalised" if self.config.flag("norm_topk_prob") else "score"
        return GatePlan("softmax", self.picked(), weighting)

    def is_moe(self, layer: int) -> bool:
        if layer in self.config.integers("mlp_only_layers"):
            return False
        return (layer + 1) % self.config.size("decoder_sparse_step") == 0


class Qwen2Moe(_Qwen):
    """Shared experts weighed by a sigmoid of their own, and a bias on queries, keys and values."""

    model_type = "qwen2_moe"
    defaults: ClassVar[Values] = {
        "rms_norm_eps": 1e-6, "norm_topk_prob": False, "decoder_sparse_step": 1, "qkv_bias": True,
        "use_sliding_window": False, "max_window_layers": 28,
    }  # fmt: skip

    def qkv_bias(self) -> bool:
        return self.config.flag("qkv_bias")

    def output_bias(self) -> bool:
        return False

    def window(self, layer: int) -> int:
        if not self.config.flag("use_sliding_window"):
            return 0
        kinds = attention_kinds(self.config, self.layers)
        slides = kinds[layer] == "sliding_attention" if kinds else self._slides_by_default(layer)
        return self.config.size("sliding_window") if slides else 0

    def _slides_by_default(self, layer: int) -> bool:
        return layer % 2 == 0 and layer < self.config.integer("max_window_layers")

    def shared_width(self) -> int:
        return self.config.size("shared_expert_intermediate_size")

    def shared(self, part: Part) -> Weights:
        block = part.below(*self.block)
        both = self.feed_forward(block.below("shared_expert"), self.shared_width())
        gate = block.read("shared_expert_gate.weight", 1, self.hidden)
        return both | Weights(plain={"shared_gate": gate.T})


class Qwen3Moe(_Qwen):
    """A norm over each head of queries and keys; no shared experts."""

    model_type = "qwen3_moe"
    defaults: ClassVar[Values] = {
        "rms_norm_eps": 1e-6, "norm_topk_prob": False, "decoder_sparse_step": 1, "use_sliding_window": False,
    }  # fmt: skip

    def window(self, layer: int) -> int:  # noqa: ARG002 - the same in every layer
        return self.config.size("sliding_window") if self.config.flag("use_sliding_window") else 0

    def attention(self, part: Part, layer: int) -> Weights:
        at = part.below("self_attn")
        norms = {f"{name}_norm": at.read(f"{name}_norm.weight", self.head_dim) for name in "qk"}
        return super().attention(part, layer) | Weights(plain=norms)
