"""Layers of local experts as one block: every kind of gate that has one, against plain numpy over the same weights."""

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from expertmesh_common.bundle.parts import PRECISIONS, Blob, Expert, Gate, Groups, Layer
from expertmesh_common.graphs.local_experts import can_stack, stack
from expertmesh_forge.formats import decode_matrix, encode_matrix

EXPERTS, K = 6, 2
SIZES = {32: (64, 32), 128: (256, 128)}
"""Hidden size and width of an expert, by the block that divides both."""
PICKED = [(precision, block) for precision in ("int8", "int4") for block in SIZES]
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


THRESHOLD = {"scorer": "linear", "weighting": "one", "picker": "threshold", "threshold": 0.1, "max_k": EXPERTS}


def made_layer(block: int = 32, shared_width: int = 0, **fields) -> Layer:
    width = SIZES[block][1]
    experts = tuple(Expert(index=i, width=width, frequency=0.5, blobs={}) for i in range(EXPERTS))
    gate = Gate(**{"picker": "top_k", "max_k": K, "weights": BLOB} | fields)
    total = EXPERTS * width + shared_width
    return Layer(index=0, kind="moe", gate=gate, shared_width=shared_width, total_width=total, experts=experts)


def made_tensors(
    precision: str = "int4", block: int = 32, *, pick_bias: bool = False, biases: bool = False, shared_width: int = 0
) -> SimpleNamespace:
    random, (hidden, width) = np.random.default_rng(3), SIZES[block]
    router = {
        "router": random.standard_normal((hidden, EXPERTS)).astype(np.float32) / 8,
        "bias": random.standard_normal(EXPERTS).astype(np.float32) / 4,
    }
    if pick_bias:
        router["pick_bias"] = np.linspace(-1.5, 1.5, EXPERTS, dtype=np.float32)
    experts = [made_expert(random, hidden, width, precision, block, biases=biases) for _ in range(EXPERTS)]
    shared = made_expert(random, hidden, shared_width, precision, block) if shared_width else ({}, None)
    trunk = {"attn_norm": np.ones(hidden, np.float32)} | {f"shared_{name}": value for name, value in shared[0].items()}
    return SimpleNamespace(
        precision=precision, router=router, packed=[e[0] for e in experts], plain=[e[1] for e in experts],
        trunk=trunk, shared=shared[1], rows=np.random.default_rng(11).standard_normal((9, hidden)).astype(np.float32),
    )  # fmt: skip


def made_expert(random, hidden: int, width: int, precision: str, block: int, *, biases: bool = False) -> tuple:
    """As a file has it, and as plain matrices that multiply rows."""
    stored, dense = {}, {}
    for name, (rows, columns) in {"gate_up": (hidden, 2 * width), "down": (width, hidden)}.items():
        weights = random.standard_normal((columns, rows)).astype(np.float32) * 2 / np.sqrt(rows)
        stored |= encode_matrix(name, weights, precision, block)
        dense[name] = decode_matrix(name, stored).T
        dense[f"{name}_bias"] = np.zeros(columns, np.float32)
        if biases:
            stored[f"{name}_bias"] = dense[f"{name}_bias"] = random.standard_normal(columns).astype(np.float32)
    return stored, dense


def computed(layer: Layer, made: SimpleNamespace, activation: str = "swiglu") -> tuple[np.ndarray, np.ndarray]:
    stacked = stack(layer, made.precision, activation, router=made.router, experts=made.packed, trunk=made.trunk)
    shape = ["batch", "steps", made.rows.shape[1]]
    outputs = {"routed": shape, stacked.block.scores: ["rows", stacked.block.columns]}
    graph = helper.make_graph(
        stacked.block.nodes, "block", [helper.make_tensor_value_info("rows", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs.items()],
        stacked.block.initialisers,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in stacked.values.values()]
    options.add_external_initializers(list(stacked.values), values)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    routed, scores = session.run(None, {"rows": made.rows[None]})
    return routed[0], scores


def oracle(layer: Layer, made: SimpleNamespace, activation: str = "swiglu") -> np.ndarray:
    gate, out = layer.gate, np.zeros_like(made.rows)
    for number, row in enumerate(made.rows):
        logits = row @ made.router["router"] + made.router["bias"]
        for expert, weight in picked(gate, logits, made.router.get("pick_bias", 0)):
            out[number] += weight * feed_forward(made.plain[expert], row, activation)
        if made.shared:
            out[number] += feed_forward(made.shared, row, activation)
    return out


def picked(gate: Gate, logits: np.ndarray, bias: np.ndarray | int) -> list[tuple[int, float]]:
    if gate.picker == "threshold":
        return [(expert, 1.0) for expert in np.flatnonzero(logits >= gate.threshold)]
    odds = np.exp(logits - logits.max())
    scores = {"linear": logits, "softmax": odds / odds.sum(), "sigmoid": 1 / (1 + np.exp(-logits))}[gate.scorer]
    best = np.argsort(-(scores + bias))[: gate.max_k]
    weights = np.exp(scores[best]) if gate.weighting == "softmax" else scores[best]
    if gate.weighting != "score":
        weights = weights / weights.sum()
    return list(zip(best, weights * gate.scale, strict=True))


def feed_forward(expert: dict[str, np.ndarray], row: np.ndarray, activation: str) -> np.ndarray:
    gate, up = np.split(row @ expert["gate_up"] + expert["gate_up_bias"], 2)
    if activation == "swiglu":
        inner = gate / (1 + np.exp(-gate)) * up
    else:
        gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
        inner = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
    return inner @ expert["down"] + expert["down_bias"]


def assert_close(got: np.ndarray, want: np.ndarray, precision: str) -> None:
    # With codes the kernel multiplies in int8: one to two per cent.
    allowed = 0.04 if precision in {"int8", "int4"} else 1e-5
    assert np.abs(got - want).max() <= allowed * np.abs(want).max()


@pytest.mark.parametrize(("precision", "block"), PICKED)
@pytest.mark.parametrize("name", GATES)
def test_a_block_computes_what_its_gate_says(name: str, precision: str, block: int) -> None:
    fields = dict(GATES[name])
    made = made_tensors(precision, block, pick_bias=fields.pop("pick_bias", False))
    layer = made_layer(block, **fields)
    assert can_stack(layer, precision)
    assert_close(computed(layer, made)[0], oracle(layer, made), precision)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", [name for name in GATES if name not in {"mixtral", "softmax of the picked"}])
def test_a_gate_of_another_kind_would_be_noticed(name: str, precision: str) -> None:
    fields = dict(GATES[name])
    made = made_tensors(precision, pick_bias=fields.pop("pick_bias", False))
    other = oracle(made_layer(**GATES["mixtral"]), made_tensors(precision))
    got, _ = computed(made_layer(**fields), made)
    assert np.abs(got - other).max() > 0.1 * np.abs(other).max()


@pytest.mark.parametrize(("precision", "block"), PICKED)
def test_biases_and_the_clamped_unit_are_those_of_the_experts(precision: str, block: int) -> None:
    made, layer = made_tensors(precision, block, biases=True), made_layer(block, **GATES["softmax of the picked"])
    made.rows *= 4
    got, _ = computed(layer, made, "clamped-swiglu")
    assert_close(got, oracle(layer, made, "clamped-swiglu"), precision)
    other = oracle(layer, made)
    assert np.abs(got - other).max() > 0.1 * np.abs(other).max()


@pytest.mark.parametrize(("precision", "block"), [*((p, 32) for p in PRECISIONS), ("int8", 128), ("int4", 128)])
@pytest.mark.parametrize("shared_blocks", [0, 2])
def test_a_threshold_masks_a_product_over_all_experts(precision: str, block: int, shared_blocks: int) -> None:
    shared_width = shared_blocks * block
    made = made_tensors(precision, block, shared_width=shared_width)
    layer = made_layer(block, shared_width, **THRESHOLD)
    assert can_stack(layer, precision)
    got, scores = computed(layer, made)
    assert_close(got, oracle(layer, made), precision)
    logits = made.rows @ made.router["router"] + made.router["bias"]
    assert 0.2 < (logits >= layer.gate.threshold).mean() < 0.8, "some are picked, and some are not"
    np.testing.assert_allclose(scores[:, :EXPERTS], logits, rtol=1e-4, atol=1e-5)
    assert (scores[:, EXPERTS:] > 1e30).all()


@pytest.mark.parametrize(
    ("precision", "fields"),
    [
        ("fp32", GATES["mixtral"]),
        ("bf16", GATES["mixtral"]),
        ("int8", {"scorer": "linear", "weighting": "sparse-mixer"}),
        ("int4", {"scorer": "linear", "weighting": "sparse-mixer"}),
        ("int8", GATES["mixtral"] | {"weight_on": "input"}),
        ("int4", GATES["mixtral"] | {"groups": Groups(count=2, kept=1, score="max")}),
        ("int4", THRESHOLD | {"max_k": 3}),
    ],
)
def test_what_has_no_block_is_known_before_anything_is_built(precision: str, fields: dict) -> None:
    assert not can_stack(made_layer(**fields), precision)
