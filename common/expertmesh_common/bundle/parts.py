"""The parts of a manifest: blobs, experts, gates, layers, trunk. All frozen, all checked when read."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
"""Best first. fp16 and bf16 are storage: they compute in float32."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Numerics = Literal["exact", "fast"]
"""`exact`: one kernel per expert wherever it runs, sums in expert order. `fast`: whatever is quickest where it runs."""
NUMERICS: tuple[Numerics, ...] = get_args(Numerics)
Activation = Literal["swiglu", "clamped-swiglu"]
"""`swiglu`: silu(gate) * up. `clamped-swiglu`: gate at most 7, up within 7; gate * sigmoid(1.702 gate) * (up + 1)."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Blob(Frozen):
    """A content-addressed file of the bundle."""

    digest: Digest
    size_bytes: Annotated[int, Field(gt=0)]


class ExpertBlob(Blob):
    """One expert at one precision. `resident_bytes` is what a loaded instance counts against a budget."""

    resident_bytes: Annotated[int, Field(gt=0)]


class Expert(Frozen):
    """A routed expert. `frequency` is the share of calibration tokens that were routed to it."""

    index: Annotated[int, Field(ge=0)]
    width: Annotated[int, Field(gt=0)]
    frequency: Share
    blobs: dict[Precision, ExpertBlob]


class Groups(Frozen):
    """Group-limited picking: only the `kept` best of `count` equal groups of neighbouring experts are picked from.

    A group is as good as its best expert (`max`, DeepSeek-V2) or the sum of its two best (`top2_sum`, DeepSeek-V3).
    """

    count: Annotated[int, Field(ge=1)]
    kept: Annotated[int, Field(ge=1)]
    score: Literal["max", "top2_sum"]


class Gate(Frozen):
    """How a layer's rows choose experts: filter -> score -> pick -> weigh, all as data.

    `weights` is a safetensors blob with `router` float32 [hidden, experts] and `bias` float32 [experts], and for some
    `pick_bias` float32 [experts]. Logits = rows @ router + bias; the scorer makes scores of them: `linear` the logits,
    `softmax` over all experts, `sigmoid` of each. Picking sees scores + pick_bias. Picker `threshold` takes every
    expert that scores >= `threshold`, at least `min_k` (best first) and at most `max_k`; `top_k` takes the best
    `max_k`, ties to the lower index.

    Weights of the picked: `one` is 1 (a plain sum); `score` the score without pick_bias; `normalised` the score over
    the sum of the picked; `softmax` and `sigmoid` of the picked scores; `sparse-mixer` (PhiMoE, k = 2) with the jitter
    `epsilon`. All are multiplied by `scale`.
    """

    scorer: Literal["linear", "softmax", "sigmoid"]
    picker: Literal["threshold", "top_k"]
    threshold: float | None = None
    min_k: Annotated[int, Field(ge=0)] = 0
    max_k: Annotated[int, Field(ge=1)]
    groups: Groups | None = None
    weighting: Literal["one", "score", "normalised", "softmax", "sigmoid", "sparse-mixer"] = "one"
    epsilon: Annotated[float, Field(ge=0.0)] = 0.0
    scale: float = 1.0
    weight_on: Literal["input", "output"] = "output"
    weights: Blob

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.picker == "threshold" and self.threshold is None:
            raise ValueError("picker `threshold` needs a threshold")
        if self.min_k > self.max_k:
            raise ValueError(f"min_k {self.min_k} is above max_k {self.max_k}")
        if self.groups and self.groups.kept > self.groups.count:
            raise ValueError(f"{self.groups.kept} of {self.groups.count} groups cannot be kept")
        if self.weighting == "sparse-mixer" and self.max_k != 2:
            raise ValueError(f"weighting `sparse-mixer` is for 2 experts, not {self.max_k}")
        return self


class Layer(Frozen):
    """A feed-forward block. `total_width` counts shared and routed neurons; shared ones live in the trunk.

    A `dense` layer has no gate and no experts: its whole block lives in the trunk, and nothing is dispatched.
    """

    index: Annotated[int, Field(ge=0)]
    kind: Literal["moe", "dense"]
    gate: Gate | None = None
    shared_width: Annotated[int, Field(ge=0)]
    total_width: Annotated[int, Field(gt=0)]
    experts: tuple[Expert, ...] = ()

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if [e.index for e in self.experts] != list(range(len(self.experts))):
            raise ValueError(f"the experts of layer {self.index} are not numbered 0, 1, 2, ...")
        if (self.kind == "moe") != (self.gate is not None) or (self.kind == "moe") != bool(self.experts):
            raise ValueError(
                f"layer {self.index} is {self.kind}: moe layers have a gate and experts, dense ones neither"
            )
        width = self.shared_width + sum(e.width for e in self.experts)
        if width != self.total_width:
            raise ValueError(
                f"layer {self.index} has {width} neurons in its experts, total_width is {self.total_width}"
            )
        return self


class Graph(Frozen):
    """An ONNX graph whose initialisers lie in the safetensors blob `weights` (its location is that digest)."""

    graph: Blob
    weights: Blob


class Segment(Frozen):
    """A piece of the trunk between two MoE layers, at each precision. The last one is the head."""

    index: Annotated[int, Field(ge=0)]
    graphs: dict[Precision, Graph]


class Rope(Frozen):
    """Rotary positions as data: the angle of position p in pair i is p * inverse_frequencies[i].

    `factor` multiplies cosines and sines (YaRN, longrope). The first 2 * len(inverse_frequencies) values of a head
    turn, pair i being the values i and i + len(inverse_frequencies).
    """

    inverse_frequencies: tuple[float, ...]
    factor: float = 1.0


class Trunk(Frozen):
    """Everything that is not a routed expert. Segment i (i < layers) ends at MoE layer i; the last is the head.

    `kv_heads` and `head_dim` are those of the key-value cache. Without `rope`, `rope_base` says it all. The norms
    inside latent attention have `latent_norm_epsilon`, or `norm_epsilon` without it.
    """

    hidden: Annotated[int, Field(gt=0)]
    heads: Annotated[int, Field(gt=0)]
    kv_heads: Annotated[int, Field(gt=0)]
    head_dim: Annotated[int, Field(gt=0)]
    vocabulary: Annotated[int, Field(gt=0)]
    context_tokens: Annotated[int, Field(gt=0)]
    rope_base: float
    rope: Rope | None = None
    norm_epsilon: float
    latent_norm_epsilon: float | None = None
    activation: Activation
    segments: tuple[Segment, ...]
