"""What families of checkpoints have in common; each one says only where it differs.

A family turns a config into a plan and a part of the checkpoint into tensors of the bundle. Matrices are [out, in], as
checkpoints hold them; rotary rows leave in half-rotated order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import numpy as np

from expertmesh_common.bundle.parts import Activation
from expertmesh_common.graphs.trunk import AttentionShape
from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.importing.checkpoint import Checkpoint
from expertmesh_forge.importing.config import CheckpointConfig, Values
from expertmesh_forge.importing.families.fitting import check_heads, check_picks, quantised_by
from expertmesh_forge.importing.families.part import Part
from expertmesh_forge.importing.planning import ExpertPieces, GatePlan, LayerPlan, ModelPlan, Weights
from expertmesh_forge.importing.rope import read_rope, rope_settings

__all__ = ["Family"]


class Family(ABC):
    """One family. `config` is the checkpoint's over the family's defaults.

    Raises:
        UnsupportedModel: the config asks for something that this toolchain does not convert.
        SourceError: the config lacks a value, has one of the wrong kind, or contradicts itself.

    """

    model_type: ClassVar[str]
    defaults: ClassVar[Values] = {}
    activation: ClassVar[Activation] = "swiglu"
    roots: ClassVar[tuple[str, ...]] = ("",)
    block: ClassVar[tuple[str, ...]] = ("mlp",)
    """What the feed-forward block of a layer is called."""
    router_names: ClassVar[tuple[str, ...]] = ("gate.weight", "router.weight")
    experts_keys: ClassVar[tuple[str, ...]] = ("num_local_experts",)
    picked_keys: ClassVar[tuple[str, ...]] = ("num_experts_per_tok",)
    width_key: ClassVar[str] = "intermediate_size"
    """How the config spells the experts of a layer, those that a row goes to, and the width of one."""
    expert_names: ClassVar[tuple[str, str, str]] = ("gate_proj", "up_proj", "down_proj")
    heads_share_hidden: ClassVar[bool] = True
    norm_bias: ClassVar[bool] = False
    quantised: ClassVar[tuple[str, ...]] = ()
    """Methods of quantisation that are undone at import."""

    def __init__(self, config: CheckpointConfig) -> None:
        common = {"rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False}
        self.config = config.over({**common, **self.defaults})
        self.hidden = self.config.size("hidden_size")
        self.layers = self.config.size("num_hidden_layers")
        self.heads = self.config.size("num_attention_heads")
        self.kv_heads = self.config.size("num_key_value_heads", self.heads)
        self.head_dim = self.config.size("head_dim", self.hidden // self.heads)
        self.vocabulary = self.config.size("vocab_size")
        self._check_common()
        self.check()
        check_picks(self.config, self.config.either(*self.picked_keys), self.config.either(*self.experts_keys))

    # --- what the config says

    def check(self) -> None:  # noqa: B027 - most families have nothing to add
        """Raise `UnsupportedModel` for settings that would be served wrongly."""

    def _check_common(self) -> None:
        if self.heads_share_hidden:
            check_heads(self.config, self.hidden, self.heads, self.kv_heads)
        if self.config.text("hidden_act") != "silu":
            raise self.unsupported(f"activation {self.config.text('hidden_act')!r}", "only silu is")
        method = quantised_by(self.config)
        if method is not None and method not in self.quantised:
            raise self.unsupported(f"weights quantised by {method}", "take the bf16 or fp16 form of this checkpoint")

    @abstractmethod
    def gate(self) -> GatePlan:
        """How rows of a MoE layer choose experts."""

    def experts(self) -> tuple[int, int]:
        """(experts of a layer, width of one)."""
        return self.config.size(self.config.either(*self.experts_keys)), self.config.size(self.width_key)

    def picked(self) -> int:
        """Experts that a row goes to."""
        return self.config.size(self.config.either(*self.picked_keys))

    def is_moe(self, layer: int) -> bool:  # noqa: ARG002 - some families ask
        return True

    def shared_width(self) -> int:
        """Width of the shared experts beside the routed ones."""
        return 0

    def dense_width(self) -> int:
        """Width of the block of a layer without experts."""
        return self.config.size("intermediate_size")

    def attention_shape(self, layer: int) -> AttentionShape:
        return AttentionShape(self.heads, self.kv_heads, self.head_dim, window=self.window(layer))

    def window(self, layer: int) -> int:  # noqa: ARG002 - some families ask
        """Tokens that a token attends to, itself included; 0 is all of them."""
        return 0

    def qkv_bias(self) -> bool:
        return self.config.flag("attention_bias")

    def output_bias(self) -> bool:
        return self.config.flag("attention_bias")

    def rotary_dim(self) -> int:
        return self.head_dim

    def context_limit(self) -> tuple[int, str]:
        """(longest text that is served exactly, why no longer)."""
        return self.config.size("max_position_embeddings"), "the config's max_position_embeddings"

    def default_context(self) -> int:
        return self.context_limit()[0]

    def plan(self, context_tokens: int | None = None) -> ModelPlan:
        """The plan of a bundle that serves texts of up to `context_tokens`."""
        limit, reason = self.context_limit()
        served = context_tokens or self.default_context()
        if served > limit:
            raise UnsupportedModel(f"a context of {served} tokens is too long: up to {limit} are served ({reason})")
        settings = rope_settings(self.config, self.rotary_dim())
        return ModelPlan(
            family=self.model_type,
            hidden=self.hidden,
            vocabulary=self.vocabulary,
            context_tokens=served,
            norm_epsilon=self.config.positive("rms_norm_eps"),
            activation=self.activation,
            rope_base=settings.base,
            rope=read_rope(settings, served),
            layers=tuple(self._layer_plan(layer, served) for layer in range(self.layers)),
            notes=self.notes(served),
        )

    def ignored(self) -> tuple[str, ...]:
        """Patterns of tensors that serving does not need."""
        # Some exporters save the tied head all the same.
        return (r"(.*\.)?lm_head\.weight",) if self.config.flag("tie_word_embeddings") else ()

    def notes(self, context_tokens: int) -> tuple[str, ...]:
        """What the person who imports the model should know."""
        trained = self.config.size("max_position_embeddings")
        if context_tokens >= trained:
            return ()
        return (f"texts of up to {context_tokens} of {trained} tokens: {self.context_limit()[1]}",)

    def _layer_plan(self, layer: int, served_tokens: int) -> LayerPlan:
        attention = self.attention_shape(layer)
        if attention.window >= served_tokens:
            attention = replace(attention, window=0)  # it never hides anything
        if not self.is_moe(layer):
            return LayerPlan(attention, self.dense_width())
        experts, width = self.experts()
        return LayerPlan(attention, self.shared_width(), self.gate(), experts, width)

    # --- what the tensors hold

    def model(self, source: Checkpoint) -> Part:
        return Part(source, tuple(f"{root}model." for root in self.roots))

    def layer(self, source: Checkpoint, layer: int) -> Part:
        return self.model(source).below(f"layers.{layer}")

    def embedding(self, source: Checkpoint) -> Floats:
        """float32 [vocabulary, hidden]."""
        return self.model(source).read("embed_tokens.weight", self.vocabulary, self.hidden)

    def head(self, source: Checkpoint) -> Weights:
        matrix = self._lm_head(source)
        return Weights({"lm_head": matrix}, self.norm(self.model(source), "norm", "final_norm"))

    def _lm_head(self, source: Checkpoint) -> Floats:
        if self.config.flag("tie_word_embeddings"):
            return self.embedding(source)
        return Part(source, self.roots).read("lm_head.weight", self.vocabulary, self.hidden)

    def norm(self, part: Part, name: str, out: str) -> dict[str, Floats]:
        """A norm over the hidden size under its name in the bundle."""
        found = {out: part.read(f"{name}.weight", self.hidden)}
        return found | ({f"{out}_bias": part.read(f"{name}.bias", self.hidden)} if self.norm_bias else {})

    def attention(self, part: Part, layer: int) -> Weights:  # noqa: ARG002 - some families ask
        """Norms and projections of one layer; `part` is the layer."""
        at, rows = part.below("self_attn"), (self.heads * self.head_dim, *[self.kv_heads * self.head_dim] * 2)
        qkv = [at.read(f"{name}_proj.weight", n, self.hidden) for name, n in zip("qkv", rows, strict=True)]
        matrices = {"qkv": np.concatenate(qkv), "o": at.read("o_proj.weight", self.hidden, rows[0])}
        plain = self.norm(part, "input_layernorm", "attn_norm") | self.norm(
            part, "post_attention_layernorm", "ffn_norm"
        )
        if self.qkv_bias():
            biases = [at.read(f"{name}_proj.bias", n) for name, n in zip("qkv", rows, strict=True)]
            plain["qkv_bias"] = np.concatenate(biases)
        if self.output_bias():
            plain["o_bias"] = at.read("o_proj.bias", self.hidden)
        return Weights(matrices, plain)

    def feed_forward(self, part: Part, width: int) -> Weights:
        """A gated block that every row goes through: shared experts, or the whole block of a dense layer."""
        both = [part.read(f"{name}_proj.weight", width, self.hidden) for name in ("gate", "up")]
        down = part.read("down_proj.weight", self.hidden, width)
        return Weights({"shared_gate_up": np.concatenate(both), "shared_down": down})

    def shared(self, part: Part) -> Weights:
        """The shared experts of a MoE layer; `part` is the layer."""
        raise NotImplementedError

    def trunk(self, source: Checkpoint, layer: int) -> Weights:
        """Everything that segment `layer` of the trunk holds, the embedding of the first one aside."""
        part = self.layer(source, layer)
        weights = self.attention(part, layer)
        if not self.is_moe(layer):
            return weights | self.feed_forward(part.below(*self.block), self.dense_width())
        return weights | self.shared(part) if self.shared_width() else weights

    def router(self, part: Part) -> dict[str, Floats]:
        """`router` float32 [hidden, experts], `bias` float32 [experts], and for some `pick_bias` float32 [experts]."""
        experts, _ = self.experts()
        weights = part.read(self.router_names, experts, self.hidden)
        return {"router": np.ascontiguousarray(weights.T), "bias": np.zeros(experts, np.float32)}

    def expert(self, part: Part, index: int) -> ExpertPieces:
        """One routed expert, from the fused tensors of its layer or from its own ones; `part` is the block."""
        experts, width = self.experts()
        if part.has("experts.gate_up_proj"):
            both = part.read("experts.gate_up_proj", experts, 2 * width, self.hidden, part=index)
            down = part.read("experts.down_proj", experts, self.hidden, width, part=index)
            return ExpertPieces(both[:width], both[width:], down)
        at, (gate, up, down_name) = part.below(f"experts.{index}"), self.expert_names
        return ExpertPieces(
            at.read(f"{gate}.weight", width, self.hidden),
            at.read(f"{up}.weight", width, self.hidden),
            at.read(f"{down_name}.weight", self.hidden, width),
        )

    def unsupported(self, what: str, instead: str = "this toolchain does not convert it") -> UnsupportedModel:
        return UnsupportedModel(f"{self.config.path}: {self.model_type} with {what} is not supported: {instead}")
