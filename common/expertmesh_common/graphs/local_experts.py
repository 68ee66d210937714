"""The routed experts of a layer as nodes of one graph, for layers whose experts all lie in this process.

Two kinds. A top-k gate over int4 or int8 experts is the runtime's QMoE operator, which computes the picked experts
only. A threshold gate, which picks most experts for most rows, is a dense product over all of them whose neurons are
masked by the gate's decision: more arithmetic, but the fewest and largest products.

Weights are stacked in memory from the experts' own blobs; the tensors that a block declares are handed to the session.
Those of fp16 and bf16 become float32 as they are stacked, as they do in the session of an expert of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from expertmesh_common.bundle.parts import Activation, Gate, Layer, Precision
from expertmesh_common.bundle.tensors import Array
from expertmesh_common.graphs.stitching import Block

__all__ = ["Stacked", "can_stack", "stack"]

ROWS, COMBINED = "rows", "routed"
_CONTRIB = "com.microsoft"
_BITS: Mapping[Precision, int] = {"int8": 8, "int4": 4}
"""Of the codes of the precisions that have some; the others are plain matrices."""
_ACTIVATIONS: Mapping[Activation, Mapping[str, float]] = {
    "swiglu": {"activation_alpha": 1.0, "activation_beta": 0.0},
    "clamped-swiglu": {"activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 7.0},
}
_IMPLICIT = {("softmax", "normalised"), ("linear", "softmax")}
"""(scorer, weighting) that are a softmax over the picked logits, which QMoE does by itself."""
_EXPLICIT = {("softmax", "score"), ("sigmoid", "score"), ("sigmoid", "normalised")}
"""Those whose weights QMoE is given."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """A block and the values of its initialisers, by local name."""

    block: Block
    values: Mapping[str, Array]


def can_stack(layer: Layer, precision: Precision) -> bool:
    """Whether there is a block for this layer's gate at this precision; dense layers need none."""
    gate = layer.gate
    if gate is None:
        return True
    if gate.picker == "threshold":
        whole = gate.min_k == 0 and gate.max_k >= len(layer.experts)
        return whole and (gate.scorer, gate.weighting) == ("linear", "one")
    plain = gate.groups is None and gate.weight_on == "output"
    known = (gate.scorer, gate.weighting) in _IMPLICIT | _EXPLICIT
    return precision in _BITS and plain and known and len({e.width for e in layer.experts}) == 1


def stack(
    layer: Layer,
    precision: Precision,
    activation: Activation,
    *,
    router: Mapping[str, Array],
    experts: Sequence[Mapping[str, Array]],
    trunk: Mapping[str, Array],
) -> Stacked:
    """The block of a layer that `can_stack`.

    `router` are the tensors of the gate's blob, `experts` those of the experts' blobs in order, `trunk` those of the
    layer's segment.
    """
    assert layer.gate is not None, "dense layers have no block"
    if layer.gate.picker == "threshold":
        return _masked(layer.gate, precision, router, experts, _shared(trunk))
    return _picked(layer.gate, _BITS[precision], activation, router, experts)


@dataclass(slots=True)
class _Nodes:
    """What a block collects."""

    nodes: list[NodeProto] = field(default_factory=list)
    values: dict[str, Array] = field(default_factory=dict)
    inline: list[TensorProto] = field(default_factory=list)

    def add(self, kind: str, inputs: Sequence[str], *outs: str, domain: str = "", **attributes: float | str) -> str:
        """Add an operator; returns its first output's name."""
        node = helper.make_node(kind, list(inputs), list(outs), domain=domain)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        return outs[0]

    def value(self, name: str, array: Array) -> str:
        self.values[name] = np.ascontiguousarray(array)
        return name

    def constant(self, name: str, numbers: Sequence[int]) -> str:
        """A shape, which the runtime must see when it reads the graph."""
        self.inline.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name

    def stacked(self, scores: str, columns: int, *, includes_shared: bool = False) -> Stacked:
        declared = [_declared(name, array) for name, array in self.values.items()]
        return Stacked(Block(self.nodes, [*self.inline, *declared], scores, columns, includes_shared), self.values)

    def logits(self, router: Mapping[str, Array]) -> str:
        """Rows @ router + bias, float32 [rows, experts]."""
        product = self.add("MatMul", (ROWS, self.value("router", router["router"])), "router_product")
        if router["bias"].any():
            product = self.add("Add", (product, self.value("router_bias", router["bias"])), "router_biased")
        flat = self.constant("flat", (-1, router["router"].shape[1]))
        return self.add("Reshape", (product, flat), "scores")

    def matmul(self, left: str, name: str, parts: Mapping[str, Array], bits: int | None, out: str) -> str:
        """A product with a matrix in either of the two forms that `_concatenated` gives."""
        if bits is None:
            return self.add("MatMul", (left, self.value(name, parts[name])), out)
        codes, scales = parts[f"{name}_q"], parts[f"{name}_s"]
        columns, blocks, _ = codes.shape
        block = _block_size(codes, bits)
        inputs = (left, self.value(f"{name}_q", codes), self.value(f"{name}_s", scales))
        return self.add(
            "MatMulNBits", inputs, out, domain=_CONTRIB,
            K=blocks * block, N=columns, bits=bits, block_size=block, accuracy_level=4,
        )  # fmt: skip


def _picked(
    gate: Gate, bits: int, activation: Activation, router: Mapping[str, Array], experts: Sequence[Mapping[str, Array]]
) -> Stacked:
    graph = _Nodes()
    scores = graph.logits(router)
    probabilities, weights = _explicit(graph, gate, router, scores)
    inputs = [
        ROWS, probabilities,
        graph.value("gate_up_q", np.stack([_flat(_interleaved(e["gate_up_q"])) for e in experts])),
        graph.value("gate_up_s", np.stack([_interleaved(e["gate_up_s"]) for e in experts])),
        _bias(graph, "gate_up_bias", [_interleaved(e["gate_up_bias"]) for e in experts if "gate_up_bias" in e]),
        graph.value("down_q", np.stack([_flat(e["down_q"]) for e in experts])),
        graph.value("down_s", np.stack([e["down_s"] for e in experts])),
        _bias(graph, "down_bias", [e["down_bias"] for e in experts if "down_bias" in e]),
        "", "", "", "", "", "", weights,
    ]  # fmt: skip
    while not inputs[-1]:
        inputs.pop()
    graph.add(
        "QMoE", inputs, COMBINED if gate.scale == 1.0 else "unscaled", domain=_CONTRIB,
        k=gate.max_k, activation_type="swiglu", swiglu_fusion=1, expert_weight_bits=bits,
        block_size=_block_size(experts[0]["gate_up_q"], bits),
        normalize_routing_weights=int(not weights or gate.weighting == "normalised"), accuracy_level=4,
        **_ACTIVATIONS[activation],
    )  # fmt: skip
    if gate.scale != 1.0:
        graph.add("Mul", ("unscaled", graph.value("weight_scale", np.array([gate.scale], np.float32))), COMBINED)
    return graph.stacked(probabilities, len(experts))


def _explicit(graph: _Nodes, gate: Gate, router: Mapping[str, Array], logits: str) -> tuple[str, str]:
    """(what QMoE picks by, its weights); no weights where they follow from a softmax over the picked logits."""
    if (gate.scorer, gate.weighting) in _IMPLICIT:
        return logits, ""
    kind = "Softmax" if gate.scorer == "softmax" else "Sigmoid"
    weights = graph.add(kind, (logits,), "gate_weights")
    if "pick_bias" not in router:
        return weights, weights
    return graph.add("Add", (weights, graph.value("pick_bias", router["pick_bias"])), "gate_picks"), weights


def _masked(
    gate: Gate,
    precision: Precision,
    router: Mapping[str, Array],
    routed: Sequence[Mapping[str, Array]],
    shared: Sequence[Mapping[str, Array]],
) -> Stacked:
    """Shared experts are one more expert, the last, which every row picks: its score is beyond any threshold."""
    graph, experts = _Nodes(), [*routed, *shared]
    bits = _BITS.get(precision)
    parts, widths = _concatenated(experts, bits), [_width(e, bits) for e in experts]
    weights, bias = np.pad(router["router"], ((0, 0), (0, len(shared)))), np.pad(router["bias"], (0, len(shared)))
    bias[len(routed) :] = np.finfo(np.float32).max
    graph.matmul(ROWS, "gate_up", parts, bits, "both")
    graph.add("Split", ("both",), "gate", "up", axis=-1, num_outputs=2)
    graph.add("QuickGelu", ("gate",), "silu", domain=_CONTRIB, alpha=1.0)
    graph.add("Mul", ("silu", "up"), "active")
    product = graph.add("MatMul", (ROWS, graph.value("router", weights)), "router_product")
    scores = graph.add("Add", (product, graph.value("router_bias", bias)), "shaped_scores")
    threshold = graph.value("threshold", np.array([gate.threshold], np.float32))
    picked = graph.add("GreaterOrEqual", (scores, threshold), "picked")
    mask = graph.add("Cast", (picked,), "mask", to=TensorProto.FLOAT)
    owners = graph.value("owners", np.repeat(np.eye(len(experts), dtype=np.float32), widths, axis=1))
    neurons = graph.add("MatMul", (mask, owners), "neurons")
    graph.matmul(graph.add("Mul", ("active", neurons), "kept"), "down", parts, bits, COMBINED)
    flat = graph.add("Reshape", (scores, graph.constant("flat", (-1, len(experts)))), "scores")
    return graph.stacked(flat, len(experts), includes_shared=bool(shared))


def _shared(trunk: Mapping[str, Array]) -> list[Mapping[str, Array]]:
    """The shared experts of a segment under the names of an expert's file; none if it has none."""
    found = {name.removeprefix("shared_"): value for name, value in trunk.items() if name.startswith("shared_")}
    return [found] if found else []


def _concatenated(experts: Sequence[Mapping[str, Array]], bits: int | None) -> dict[str, Array]:
    """All experts as one: gate columns of all, then up columns of all, and down rows; without codes in float32."""
    if bits is None:
        halves = [np.split(e["gate_up"].astype(np.float32), 2, axis=1) for e in experts]
        both = np.concatenate([h[0] for h in halves] + [h[1] for h in halves], axis=1)
        return {"gate_up": both, "down": np.concatenate([e["down"].astype(np.float32) for e in experts], axis=0)}
    found: dict[str, Array] = {}
    for suffix in ("_q", "_s"):
        halves = [np.split(e[f"gate_up{suffix}"], 2, axis=0) for e in experts]
        found[f"gate_up{suffix}"] = np.concatenate([h[0] for h in halves] + [h[1] for h in halves], axis=0)
        found[f"down{suffix}"] = np.concatenate([e[f"down{suffix}"] for e in experts], axis=1)
    return found


def _width(expert: Mapping[str, Array], bits: int | None) -> int:
    return int(expert["gate_up"].shape[1] if bits is None else expert["gate_up_s"].shape[0]) // 2


def _block_size(codes: Array, bits: int) -> int:
    """Values that share a scale, of codes [columns, blocks, bytes]."""
    return int(codes.shape[2]) * 8 // bits


def _interleaved(rows: Array) -> Array:
    """Gate rows then up rows -> gate 0, up 0, gate 1, up 1, ...: the order that QMoE takes."""
    half = len(rows) // 2
    return rows.reshape(2, half, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def _flat(codes: Array) -> Array:
    """[n, blocks, bytes] -> [n, blocks * bytes]."""
    return codes.reshape(len(codes), -1)


def _bias(graph: _Nodes, name: str, biases: Sequence[Array]) -> str:
    return graph.value(name, np.stack(biases)) if biases else ""


def _declared(name: str, array: Array) -> TensorProto:
    """An initialiser whose data the session gets in memory."""
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="memory")
    tensor.external_data.add(key="length", value=str(array.nbytes))
    return tensor
