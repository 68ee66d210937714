"""Layers of local experts as one block: every kind of gate that has one, against plain numpy over the same weights."""

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from expertmesh_common.bundle.parts import Blob, Expert, Gate, Groups, Layer
from expertmesh_common.graphs.local_experts import can_stack, stack
from models import tiny_bundle as tiny

HIDDEN, WIDTH, EXPERTS, K = 64, 32, 6, 2
BLOB = Blob(digest="0" * 64, size_bytes=1)

GATES = {
    "mixtral": {"scorer": "softmax", "weighting": "normalised"},
    "softmax of the picked": {"scorer": "linear", "weighting": "softmax"},
    "raw probabilities": {"scorer": "softmax", "weighting": "score"},
    "scaled": {"scorer": "softmax", "weighting": "normalised", "scale": 2.5},
    "sigmoid": {"scorer": "sigmoid", "weighting": "score"},
    "sigmoid, normalised": {"scorer": "sigmoid", "weighting": "normalised"},
    "with a bias for picking": {"scorer": "sigmoid", "weighting": "normalised", "pick_bias": True},
}


def made_layer(**fields) -> Layer:
    experts = tuple(Expert(index=i, width=WIDTH, frequency=0.5, blobs={}) for i in range(EXPERTS))
    gate = Gate(**{"picker": "top_k", "max_k": K, "weights": BLOB} | fields)
    return Layer(index=0, kind="moe", gate=gate, shared_width=0, total_width=EXPERTS * WIDTH, experts=experts)


def made_tensors(*, pick_bias: bool, biases: bool, seed: int = 3) -> SimpleNamespace:
    random = np.random.default_rng(seed)
    router = {
        "router": random.standard_normal((HIDDEN, EXPERTS)).astype(np.float32) / 8,
        "bias": random.standard_normal(EXPERTS).astype(np.float32) / 4,
    }
    if pick_bias:
        router["pick_bias"] = np.linspace(-1.5, 1.5, EXPERTS, dtype=np.float32)
    packed, plain = [], []
    for _ in range(EXPERTS):
        matrices = {"gate_up": (HIDDEN, 2 * WIDTH), "down": (WIDTH, HIDDEN)}
        stored, dense = {}, {}
        for name, (rows, columns) in matrices.items():
            weights = random.standard_normal((rows, columns)).astype(np.float32) * 2 / np.sqrt(rows)
            stored[f"{name}_q"], stored[f"{name}_s"] = tiny.quantise(weights)
            dense[name] = tiny.dequantise(stored[f"{name}_q"], stored[f"{name}_s"])
            bias = random.standard_normal(columns).astype(np.float32) if biases else np.zeros(columns, np.float32)
            dense[f"{name}_bias"] = bias
            if biases:
                stored[f"{name}_bias"] = bias
        packed.append(stored)
        plain.append(dense)
    return SimpleNamespace(router=router, packed=packed, plain=plain)


def computed(layer: Layer, made: SimpleNamespace, rows: np.ndarray, activation: str = "swiglu") -> np.ndarray:
    stacked = stack(layer, "int4", activation, router=made.router, experts=made.packed, trunk={})
    shape = ["batch", "steps", HIDDEN]
    graph = helper.make_graph(
        stacked.block.nodes, "block", [helper.make_tensor_value_info("rows", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("routed", TensorProto.FLOAT, shape)], stacked.block.initialisers,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in stacked.values.values()]
    options.add_external_initializers(list(stacked.values), values)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"rows": rows[None]})[0][0]


def oracle(layer: Layer, made: SimpleNamespace, rows: np.ndarray, activation: str = "swiglu") -> np.ndarray:
    gate, out = layer.gate, np.zeros_like(rows)
    for number, row in enumerate(rows):
        logits = row @ made.router["router"] + made.router["bias"]
        odds = np.exp(logits - logits.max())
        scores = {"linear": logits, "softmax": odds / odds.sum(), "sigmoid": 1 / (1 + np.exp(-logits))}[gate.scorer]
        picked = np.argsort(-(scores + made.router.get("pick_bias", 0)))[: gate.max_k]
        weights = np.exp(scores[picked]) if gate.weighting == "softmax" else scores[picked]
        if gate.weighting != "score":
            weights = weights / weights.sum()
        for expert, weight in zip(picked, weights * gate.scale, strict=True):
            out[number] += weight * feed_forward(made.plain[expert], row, activation)
    return out


def feed_forward(expert: dict[str, np.ndarray], row: np.ndarray, activation: str) -> np.ndarray:
    gate, up = np.split(row @ expert["gate_up"] + expert["gate_up_bias"], 2)
    if activation == "swiglu":
        inner = gate / (1 + np.exp(-gate)) * up
    else:
        gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
        inner = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
    return inner @ expert["down"] + expert["down_bias"]


def some_rows() -> np.ndarray:
    return np.random.default_rng(11).standard_normal((9, HIDDEN)).astype(np.float32)


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    # The kernel multiplies in int8: one to two per cent.
    assert np.abs(got - want).max() <= 0.04 * np.abs(want).max()


@pytest.mark.parametrize("name", GATES)
def test_a_block_computes_what_its_gate_says(name: str) -> None:
    fields = dict(GATES[name])
    made = made_tensors(pick_bias=fields.pop("pick_bias", False), biases=False)
    layer = made_layer(**fields)
    assert can_stack(layer, "int4")
    assert_close(computed(layer, made, some_rows()), oracle(layer, made, some_rows()))


@pytest.mark.parametrize("name", [name for name in GATES if name not in {"mixtral", "softmax of the picked"}])
def test_a_gate_of_another_kind_would_be_noticed(name: str) -> None:
    fields = dict(GATES[name])
    made = made_tensors(pick_bias=fields.pop("pick_bias", False), biases=False)
    plain = made_tensors(pick_bias=False, biases=False)
    other = oracle(made_layer(**GATES["mixtral"]), plain, some_rows())
    got = computed(made_layer(**fields), made, some_rows())
    assert np.abs(got - other).max() > 0.1 * np.abs(other).max()


def test_biases_and_the_clamped_unit_are_those_of_the_experts() -> None:
    made, layer = made_tensors(pick_bias=False, biases=True), made_layer(**GATES["softmax of the picked"])
    rows = 4 * some_rows()
    got = computed(layer, made, rows, "clamped-swiglu")
    assert_close(got, oracle(layer, made, rows, "clamped-swiglu"))
    other = oracle(layer, made, rows)
    assert np.abs(got - other).max() > 0.1 * np.abs(other).max()


@pytest.mark.parametrize(
    ("precision", "fields"),
    [
        ("fp32", GATES["mixtral"]),
        ("int4", {"scorer": "linear", "weighting": "sparse-mixer"}),
        ("int4", GATES["mixtral"] | {"weight_on": "input"}),
        ("int4", GATES["mixtral"] | {"groups": Groups(count=2, kept=1, score="max")}),
        ("int4", {"scorer": "linear", "weighting": "one", "picker": "threshold", "threshold": 0.0, "max_k": 3}),
    ],
)
def test_what_has_no_block_is_known_before_anything_is_built(precision: str, fields: dict) -> None:
    assert not can_stack(made_layer(**fields), precision)
