"""DeepSeek-V2 and V3: latent attention, group-limited picking, shared experts, first layers dense."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from expertmesh_common.bundle.parts import Groups
from expertmesh_common.graphs.trunk import AttentionShape, LatentShape
from expertmesh_forge.dense_model import Floats
from expertmesh_forge.importing.config import Values
from expertmesh_forge.importing.families.base import Family
from expertmesh_forge.importing.families.fitting import check_groups
from expertmesh_forge.importing.families.part import Part
from expertmesh_forge.importing.families.rotary_rows import halves_first
from expertmesh_forge.importing.planning import GatePlan, ModelPlan, Weights
from expertmesh_forge.importing.rope import rope_settings, yarn_magnitude

__all__ = ["DeepseekV2", "DeepseekV3"]

# The config speaks of the other norms only.
_LATENT_NORM_EPSILON = 1e-6


class _Deepseek(Family):
    """Latent attention: keys and values come from one small vector per token, and a rotary key that all heads share."""

    experts_keys = ("n_routed_experts",)
    width_key = "moe_intermediate_size"
    heads_share_hidden = False  # they have sizes of their own
    quantised = ("fp8",)

    def check(self) -> None:
        if self.config.flag("attention_bias"):
            raise self.unsupported("attention_bias", "latent attention has no biases in the trunk")
        if self.config.has("moe_layer_freq") and self.config.integer("moe_layer_freq") != 1:
            raise self.unsupported("moe_layer_freq other than 1", "every layer after the dense ones has experts")
        if self.config.has("scoring_func") and self.config.text("scoring_func") != self.gate().scorer:
            raise self.unsupported(f"scoring_func {self.config.text('scoring_func')!r}", f"{self.gate().scorer} is")
        self.latent = LatentShape(
            self.config.size("kv_lora_rank"), self.config.size("qk_nope_head_dim"),
            self.config.size("qk_rope_head_dim"), self.config.size("v_head_dim"),
        )  # fmt: skip

    def plan(self, context_tokens: int | None = None) -> ModelPlan:
        return replace(super().plan(context_tokens), latent_norm_epsilon=_LATENT_NORM_EPSILON)

    def is_moe(self, layer: int) -> bool:
        return layer >= self.config.count("first_k_dense_replace")

    def shared_width(self) -> int:
        if not self.config.has("n_shared_experts"):
            return 0
        return self.config.count("n_shared_experts") * self.config.size("moe_intermediate_size")

    def shared(self, part: Part) -> Weights:
        return self.feed_forward(part.below(*self.block).below("shared_experts"), self.shared_width())

    def rotary_dim(self) -> int:
        return self.latent.rope_dim

    def attention_shape(self, layer: int) -> AttentionShape:
        width = self.latent.rope_dim + self.latent.nope_dim
        shape = replace(super().attention_shape(layer), kv_heads=self.heads, head_dim=width, latent=self.latent)
        return replace(shape, scale=width**-0.5 * self._magnitude() ** 2)

    def groups(self, score: Literal["max", "top2_sum"]) -> Groups | None:
        count = self.config.size("n_group", 1)
        if count == 1:
            return None
        check_groups(self.config, self.experts()[0], self.picked())
        return Groups(count=count, kept=self.config.size("topk_group"), score=score)

    def attention(self, part: Part, layer: int) -> Weights:  # noqa: ARG002 - the same in every layer
        at, latent = part.below("self_attn"), self.latent
        kv_a = at.read("kv_a_proj_with_mqa.weight", latent.rank + latent.rope_dim, self.hidden)
        both = at.read("kv_b_proj.weight", self.heads * (latent.nope_dim + latent.value_dim), latent.rank)
        by_head = both.reshape(self.heads, -1, latent.rank)
        keys, values = (half.reshape(-1, latent.rank) for half in np.split(by_head, [latent.nope_dim], axis=1))
        matrices = {
            "kv_a": np.concatenate([kv_a[: latent.rank], self._turned(kv_a[latent.rank :])]),
            "kv_b": np.concatenate([keys, values]),
            "o": at.read("o_proj.weight", self.hidden, self.heads * latent.value_dim),
        }
        plain = {"kv_a_norm": at.read("kv_a_layernorm.weight", latent.rank)}
        plain |= self.norm(part, "input_layernorm", "attn_norm")
        plain |= self.norm(part, "post_attention_layernorm", "ffn_norm")
        return self._queries(at) | Weights(matrices, plain)

    def _queries(self, at: Part) -> Weights:
        rows = self.heads * (self.latent.nope_dim + self.latent.rope_dim)
        if not self.config.has("q_lora_rank"):
            return Weights({"q": self._by_head(at.read("q_proj.weight", rows, self.hidden))})
        rank = self.config.size("q_lora_rank")
        return Weights(
            {
                "q_a": at.read("q_a_proj.weight", rank, self.hidden),
                "q_b": self._by_head(at.read("q_b_proj.weight", rows, rank)),
            },
            {"q_a_norm": at.read("q_a_layernorm.weight", rank)},
        )

    def _by_head(self, queries: Floats) -> Floats:
        """Of every head the rotary rows first, in half-rotated order, then the others."""
        by_head = queries.reshape(self.heads, -1, queries.shape[1])
        still, turning = np.split(by_head, [self.latent.nope_dim], axis=1)
        return np.concatenate([self._turned(turning), still], axis=1).reshape(queries.shape)

    def _turned(self, rows: Floats) -> Floats:
        return halves_first(rows)

    def _magnitude(self) -> float:
        settings = rope_settings(self.config, self.latent.rope_dim)
        if settings.kind == "default" or not settings.scaling.has("mscale_all_dim"):
            return 1.0
        weight = settings.scaling.number("mscale_all_dim")
        return yarn_magnitude(settings.factor, weight) if weight else 1.0


class DeepseekV2(_Deepseek):
    """Softmax over all experts; weights are not renormalised."""

    model_type = "deepseek_v2"
    defaults: ClassVar[Values] = {
        "rms_norm_eps": 1e-6, "first_k_dense_replace": 0, "topk_method": "greedy", "routed_scaling_factor": 1.0,
        "norm_topk_prob": False,
    }  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.config.flag("norm_topk_prob"):
            raise self.unsupported("norm_topk_prob", "implementations do not agree on what it means here")
        method = self.config.text("topk_method")
        if method not in {"greedy", "group_limited_greedy"}:
            raise self.unsupported(f"topk_method {method!r}", "greedy and group_limited_greedy are")

    def gate(self) -> GatePlan:
        limited = self.config.text("topk_method") == "group_limited_greedy"
        return GatePlan(
            "softmax", self.picked(), "score",
            scale=self.config.number("routed_scaling_factor"), groups=self.groups("max") if limited else None,
        )  # fmt: skip


class DeepseekV3(_Deepseek):
    """Sigmoid scores, picked with a bias that balances load and does not weigh."""

    model_type = "deepseek_v3"
    defaults: ClassVar[Values] = {
        "rms_norm_eps": 1e-6, "first_k_dense_replace": 3, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
        "rope_interleave": True, "n_group": 8, "topk_group": 4,
    }  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.config.has("topk_method") and self.config.text("topk_method") != "noaux_tc":
            raise self.unsupported(f"topk_method {self.config.text('topk_method')!r}", "noaux_tc is")

    def gate(self) -> GatePlan:
        return GatePlan(
            "sigmoid", self.picked(),
            "normalised" if self.config.flag("norm_topk_prob") else "score",
            scale=self.config.number("routed_scaling_factor"), groups=self.groups("top2_sum"),
        )  # fmt: skip

    def router(self, part: Part) -> dict[str, Floats]:
        experts, _ = self.experts()
        return super().router(part) | {"pick_bias": part.read("gate.e_score_correction_bias", experts)}

    def ignored(self) -> tuple[str, ...]:
        # The layer behind the last one predicts a token further on; greedy serving does not ask it.
        return (*super().ignored(), rf"model\.layers\.{self.layers}\..*")

    def _turned(self, rows: Floats) -> Floats:
        return halves_first(rows) if self.config.flag("rope_interleave") else rows
