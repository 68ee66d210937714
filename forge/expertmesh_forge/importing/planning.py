"""What an import makes of a checkpoint: the shape of the model and of every layer, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from expertmesh_common.bundle.parts import Activation, Blob, Gate, Groups, Rope
from expertmesh_common.graphs.trunk import AttentionShape, TrunkShape
from expertmesh_forge.dense_model import Floats

__all__ = ["ExpertPieces", "GatePlan", "LayerPlan", "ModelPlan", "Weighting", "Weights"]

Weighting = Literal["score", "normalised", "softmax", "sigmoid", "sparse-mixer"]


@dataclass(frozen=True, slots=True)
class GatePlan:
    """A gate but for its weights; see `Gate`."""

    scorer: Literal["linear", "softmax", "sigmoid"]
    max_k: int
    weighting: Weighting
    epsilon: float = 0.0
    scale: float = 1.0
    weight_on: Literal["input", "output"] = "output"
    groups: Groups | None = None

    def gate(self, weights: Blob) -> Gate:
        return Gate(
            scorer=self.scorer,
            picker="top_k",
            max_k=self.max_k,
            groups=self.groups,
            weighting=self.weighting,
            epsilon=self.epsilon,
            scale=self.scale,
            weight_on=self.weight_on,
            weights=weights,
        )


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer. A dense one has no gate and no experts; `shared_width` is then the width of its whole block."""

    attention: AttentionShape
    shared_width: int
    gate: GatePlan | None = None
    experts: int = 0
    expert_width: int = 0

    @property
    def total_width(self) -> int:
        return self.shared_width + self.experts * self.expert_width


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The whole model. `notes` are what the person who imports it should know."""

    family: str
    hidden: int
    vocabulary: int
    context_tokens: int
    norm_epsilon: float
    activation: Activation
    rope_base: float
    rope: Rope
    layers: tuple[LayerPlan, ...]
    notes: tuple[str, ...] = ()
    latent_norm_epsilon: float | None = None

    @property
    def trunk(self) -> TrunkShape:
        shapes = tuple(layer.attention for layer in self.layers)
        first = shapes[0]
        return TrunkShape(
            len(shapes), self.hidden, first.heads, first.kv_heads, first.head_dim, self.norm_epsilon, shapes,
            self.latent_norm_epsilon,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """Trunk tensors by their names in the bundle, float32: matrices [out, in], and plain ones as they are.

    Of the plain ones only `embed` has another type in the bundle at some precisions.
    """

    matrices: dict[str, Floats] = field(default_factory=dict)
    plain: dict[str, Floats] = field(default_factory=dict)

    def __or__(self, other: Weights) -> Weights:
        return Weights(self.matrices | other.matrices, self.plain | other.plain)


@dataclass(frozen=True, slots=True)
class ExpertPieces:
    """One expert: gate [width, hidden], up [width, hidden], down [hidden, width], and biases where it has them."""

    gate: Floats
    up: Floats
    down: Floats
    gate_bias: Floats | None = None
    up_bias: Floats | None = None
    down_bias: Floats | None = None
