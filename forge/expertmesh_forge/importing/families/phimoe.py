"""PhiMoE: layer norms with biases, biases in attention and head, and the sparse mixer as gate."""

from __future__ import annotations

from typing import ClassVar

from expertmesh_forge.importing.checkpoint import Checkpoint
from expertmesh_forge.importing.config import Values
from expertmesh_forge.importing.families.base import Family
from expertmesh_forge.importing.families.part import Part
from expertmesh_forge.importing.planning import GatePlan, Weights
from expertmesh_forge.importing.rope import rope_settings

__all__ = ["PhiMoe"]


class PhiMoe(Family):
    """Two experts, each weighed by a softmax over the experts near it; the weights do not add up to 1."""

    model_type = "phimoe"
    defaults: ClassVar[Values] = {
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
        "router_jitter_noise": 0.01,
        "lm_head_bias": False,
    }
    block = ("block_sparse_moe", "mlp")
    expert_names = ("w1", "w3", "w2")
    norm_bias = True

    def check(self) -> None:
        if self.picked() != 2:
            raise self.unsupported("num_experts_per_tok other than 2", "its gate is defined for two experts")
        if self.config.number("router_jitter_noise") < 0:
            raise self.config.wrong("router_jitter_noise", "at least 0")

    def gate(self) -> GatePlan:
        return GatePlan("linear", 2, "sparse-mixer", epsilon=self.config.number("router_jitter_noise"))

    def window(self, layer: int) -> int:  # noqa: ARG002 - the same in every layer
        return self.config.size("sliding_window") if self.config.has("sliding_window") else 0

    def default_context(self) -> int:
        # Longer texts turn by other frequencies from their first token on: a bundle serves one kind or the other.
        settings = rope_settings(self.config, self.rotary_dim())
        return settings.trained_tokens if settings.kind == "longrope" else super().default_context()

    def notes(self, context_tokens: int) -> tuple[str, ...]:
        settings = rope_settings(self.config, self.rotary_dim())
        if settings.kind != "longrope":
            return super().notes(context_tokens)
        longer = context_tokens > settings.trained_tokens
        kind, other = ("long", "at most") if longer else ("short", "more than")
        return (
            f"rotary factors for {kind} texts: the bundle serves up to {context_tokens} tokens; give --context-tokens "
            f"of {other} {settings.trained_tokens} for the others",
        )

    def head(self, source: Checkpoint) -> Weights:
        weights = super().head(source)
        if self.config.flag("lm_head_bias"):
            weights.plain["lm_head_bias"] = Part(source, self.roots).read("lm_head.bias", self.vocabulary)
        return weights
