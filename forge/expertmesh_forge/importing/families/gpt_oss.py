"""gpt-oss: biases everywhere, attention sinks, windows in every other layer, MXFP4 or bf16 experts."""

from __future__ import annotations

from typing import ClassVar

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.importing.config import Values
from expertmesh_forge.importing.families.base import Family
from expertmesh_forge.importing.families.fitting import attention_kinds
from expertmesh_forge.importing.families.part import Part
from expertmesh_forge.importing.mxfp4 import MXFP4_BLOCK
from expertmesh_forge.importing.planning import ExpertPieces, GatePlan, Weights

__all__ = ["GptOss"]


class GptOss(Family):
    """Top-k of the logits, softmax over the picked ones. Gate and up rows of the experts are interleaved."""

    model_type = "gpt_oss"
    defaults: ClassVar[Values] = {
        "rope_theta": 150000.0, "rms_norm_eps": 1e-5, "attention_bias": True, "head_dim": 64,
        "swiglu_limit": 7.0, "swiglu_alpha": 1.702, "sliding_window": 128,
        "rope_parameters": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    }  # fmt: skip
    activation = "clamped-swiglu"
    quantised = ("mxfp4",)
    picked_keys = ("num_experts_per_tok", "experts_per_token")

    def check(self) -> None:
        given = (self.config.number("swiglu_limit"), self.config.number("swiglu_alpha"))
        if given != (7.0, 1.702):
            raise self.unsupported(f"swiglu_limit {given[0]} and swiglu_alpha {given[1]}", "7 and 1.702 are")

    def gate(self) -> GatePlan:
        return GatePlan("linear", self.picked(), "softmax")

    def window(self, layer: int) -> int:
        kinds = attention_kinds(self.config, self.layers)
        slides = kinds[layer] == "sliding_attention" if kinds else layer % 2 == 0
        return self.config.size("sliding_window") if slides else 0

    def attention(self, part: Part, layer: int) -> Weights:
        sinks = part.below("self_attn").read("sinks", self.heads)
        return super().attention(part, layer) | Weights(plain={"sinks": sinks})

    def router(self, part: Part) -> dict[str, Floats]:
        experts, _ = self.experts()
        return super().router(part) | {"bias": part.read("router.bias", experts)}

    def expert(self, part: Part, index: int) -> ExpertPieces:
        experts, width = self.experts()
        at = part.below("experts")
        both = self._matrix(at, "gate_up_proj", 2 * width, self.hidden, index)
        both_bias = at.read("gate_up_proj_bias", experts, 2 * width, part=index)
        return ExpertPieces(
            both[0::2], both[1::2], self._matrix(at, "down_proj", self.hidden, width, index),
            both_bias[0::2], both_bias[1::2], at.read("down_proj_bias", experts, self.hidden, part=index),
        )  # fmt: skip

    def _matrix(self, at: Part, name: str, rows: int, inner: int, index: int) -> Floats:
        """[rows, inner] of one expert, which is stored packed, or as bf16 [inner, rows]."""
        experts, _ = self.experts()
        if not at.has(f"{name}_blocks"):
            return at.read(name, experts, inner, rows, part=index).T
        if inner % MXFP4_BLOCK:
            raise self.unsupported(f"MXFP4 experts of inner size {inner}", f"multiples of {MXFP4_BLOCK} are")
        return at.read_mxfp4(name, experts, rows, inner, part=index)
