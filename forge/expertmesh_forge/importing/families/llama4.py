"""Llama 4 (its text model): gate weights multiply the experts' input, some layers do not turn, chunked attention."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from expertmesh_common.graphs.trunk import AttentionShape
from expertmesh_forge.importing.config import CheckpointConfig, Values
from expertmesh_forge.importing.families.base import Family
from expertmesh_forge.importing.families.fitting import of_every_layer
from expertmesh_forge.importing.families.part import Part
from expertmesh_forge.importing.families.rotary_rows import halves_first
from expertmesh_forge.importing.planning import ExpertPieces, GatePlan, Weights

__all__ = ["Llama4Text"]


class Llama4Text(Family):
    """Also found inside a checkpoint that sees images; its other parts are left out."""

    model_type = "llama4_text"
    defaults: ClassVar[Values] = {
        "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "head_dim": 128, "num_experts_per_tok": 1, "use_qk_norm": True,
        "interleave_moe_layer_step": 1, "no_rope_layer_interval": 4, "attn_temperature_tuning": True,
        "floor_scale": 8192, "max_position_embeddings": 131072, "attention_chunk_size": 8192,
    }  # fmt: skip
    roots = ("", "language_model.")
    block = ("feed_forward",)
    router_names = ("router.weight",)

    def __init__(self, config: CheckpointConfig) -> None:
        inside = config.section("text_config")
        self.sees = bool(inside.values)
        super().__init__(_with_quantisation(inside, config) if self.sees else config)

    def gate(self) -> GatePlan:
        return GatePlan("linear", self.picked(), "sigmoid", weight_on="input")

    def is_moe(self, layer: int) -> bool:
        if self.config.has("moe_layers"):
            return layer in self.config.integers("moe_layers")
        return (layer + 1) % self.config.size("interleave_moe_layer_step") == 0

    def shared_width(self) -> int:
        return self.config.size("intermediate_size")

    def dense_width(self) -> int:
        return self.config.size("intermediate_size_mlp")

    def shared(self, part: Part) -> Weights:
        return self.feed_forward(part.below(*self.block).below("shared_expert"), self.shared_width())

    def turns(self, layer: int) -> bool:
        """Whether the layer's queries and keys turn with their position."""
        # Despite its name, a 1 means that the layer turns.
        listed = of_every_layer(self.config, "no_rope_layers", self.config.integers("no_rope_layers"), self.layers)
        return bool(listed[layer]) if listed else (layer + 1) % self.config.size("no_rope_layer_interval") != 0

    def attention_shape(self, layer: int) -> AttentionShape:
        return replace(super().attention_shape(layer), rotary=self.turns(layer))

    def context_limit(self) -> tuple[int, str]:
        limits = [super().context_limit()]
        turning = [self.turns(layer) for layer in range(self.layers)]
        if any(turning) and self.config.has("attention_chunk_size"):
            # Within one chunk, chunked attention is plain attention.
            limits.append((self.config.size("attention_chunk_size"), "one chunk of its chunked attention"))
        # The first checkpoints have a number here, which means yes.
        if not all(turning) and bool(self.config.values["attn_temperature_tuning"]):
            limits.append((self.config.size("floor_scale") - 1, "up to where its attention has one temperature"))
        return min(limits)

    def ignored(self) -> tuple[str, ...]:
        return (*super().ignored(), r"vision_model\..*", r"multi_modal_projector\..*")

    def notes(self, context_tokens: int) -> tuple[str, ...]:
        seeing = ("text only: the part that sees images is left out",) if self.sees else ()
        return (*super().notes(context_tokens), *seeing)

    def attention(self, part: Part, layer: int) -> Weights:
        weights = super().attention(part, layer)
        if not self.turns(layer):
            return weights
        turning = (self.heads + self.kv_heads) * self.head_dim
        for held, name in ((weights.matrices, "qkv"), (weights.plain, "qkv_bias")):
            if name in held:
                rows = held[name].reshape(len(held[name]), -1)
                by_head = rows[:turning].reshape(-1, self.head_dim, rows.shape[1])
                turned = halves_first(by_head).reshape(turning, -1)
                held[name] = np.concatenate([turned, rows[turning:]]).reshape(held[name].shape)
        if self.config.flag("use_qk_norm"):
            # Its norm has no weights, and turning does not change it: before or after is the same.
            weights.plain.update({name: np.ones(self.head_dim, np.float32) for name in ("q_norm", "k_norm")})
        return weights

    def expert(self, part: Part, index: int) -> ExpertPieces:
        experts, width = self.experts()
        both = part.read("experts.gate_up_proj", experts, self.hidden, 2 * width, part=index)
        down = part.read("experts.down_proj", experts, width, self.hidden, part=index)
        return ExpertPieces(both[:, :width].T, both[:, width:].T, down.T)


def _with_quantisation(inside: CheckpointConfig, whole: CheckpointConfig) -> CheckpointConfig:
    """A model that sees says beside `text_config` how its weights are quantised, those of the text among them."""
    key = "quantization_config"
    return CheckpointConfig(inside.path, {**inside.values, key: whole.values[key]}) if whole.has(key) else inside
