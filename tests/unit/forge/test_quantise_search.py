"""Searched scales: never worse than the plain rule, exact where a grid is exact, and best where inputs are large."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from expertmesh_forge.errors import BadWeights
from expertmesh_forge.quantise import dequantise_int4, quantise_int4

ROWS, INNER = 48, 256


def matrix(kind: str) -> np.ndarray:
    random = np.random.default_rng(5)
    drawn = {
        "normal": random.standard_normal((ROWS, INNER)),
        "heavy-tailed": random.standard_t(1.5, (ROWS, INNER)),
        "lopsided": random.exponential(1.0, (ROWS, INNER)),
        "constant": np.full((ROWS, INNER), -0.3),
        "one value and zeros": np.where(np.arange(INNER) % 32 == 7, 2.5, 0.0) * np.ones((ROWS, 1)),
        "huge": random.standard_normal((ROWS, INNER)) * 1e36,
        "tiny": random.standard_normal((ROWS, INNER)) * 1e-36,
    }
    return drawn[kind].astype(np.float32)


def plain(weights: np.ndarray, block: int) -> np.ndarray:
    """The rule that is searched from: the extreme of a block on code 0."""
    blocks = weights.astype(np.float64).reshape(len(weights), -1, block)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    scale = np.where(extreme == 0, 1.0, extreme / -8)
    return (np.clip(np.rint(blocks / scale), -8, 7) * scale).reshape(weights.shape)


def errors(weights: np.ndarray, found: np.ndarray, block: int, importance: np.ndarray | float = 1.0) -> np.ndarray:
    """Per block, relative to what is largest in the matrix."""
    missing = (found.astype(np.float64) - weights) / np.abs(weights).max()
    return (np.square(missing) * importance).reshape(len(weights), -1, block).sum(axis=2)


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize(
    "kind", ["normal", "heavy-tailed", "lopsided", "constant", "one value and zeros", "huge", "tiny"]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_no_block_is_worse_than_by_the_plain_rule(kind: str, block: int, weighted: bool) -> None:
    weights = matrix(kind)
    importance = np.random.default_rng(6).exponential(1.0, INNER).astype(np.float32) ** 3 if weighted else None
    counts = 1.0 if importance is None else importance
    found = errors(weights, dequantise_int4(*quantise_int4(weights, block, importance)), block, counts)
    by_rule = errors(weights, plain(weights, block), block, counts)
    assert (found <= by_rule * (1 + 1e-5) + 1e-12).all()
    if kind in {"normal", "heavy-tailed", "huge", "tiny"}:
        assert found.sum() < (0.9 if weighted else 1) * by_rule.sum()


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("largest", range(1, 8))
def test_a_grid_of_at_most_sixteen_steps_is_found_back(largest: int, block: int) -> None:
    codes = np.random.default_rng(largest).integers(-largest, largest, (ROWS, INNER), endpoint=True)
    for scale in (0.25, -0.0371):
        weights = (codes * np.float32(scale)).astype(np.float32)
        np.testing.assert_allclose(dequantise_int4(*quantise_int4(weights, block)), weights, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.25, -0.0371])
def test_what_the_plain_rule_made_comes_back_bit_for_bit(scale: float) -> None:
    codes = np.random.default_rng(1).integers(-8, 7, (ROWS, INNER), endpoint=True)
    codes[:, ::32] = -8
    weights = codes.astype(np.float32) * np.float32(scale)
    np.testing.assert_array_equal(dequantise_int4(*quantise_int4(weights)), weights)


def test_inputs_that_are_large_are_spared() -> None:
    random = np.random.default_rng(2)
    weights, sizes = matrix("normal"), random.exponential(1.0, INNER).astype(np.float32) ** 2
    inputs = (random.standard_normal((400, INNER)) * sizes).astype(np.float32)

    def lost(importance: np.ndarray | None) -> float:
        found = dequantise_int4(*quantise_int4(weights, 32, importance))
        return float(np.square(inputs @ (found - weights).T).mean())

    assert lost(np.square(inputs).mean(axis=0)) < 0.9 * lost(None)
    larger = quantise_int4(weights, 32, np.full(INNER, 3e30, np.float32))
    for one, other in zip(larger, quantise_int4(weights, 32, np.ones(INNER, np.float32)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_do_not_know_of_each_other_and_twice_is_the_same() -> None:
    weights = np.random.default_rng(3).standard_normal((700, INNER)).astype(np.float32)
    whole = quantise_int4(weights)
    halves = zip(quantise_int4(weights[:333]), quantise_int4(weights[333:]), strict=True)
    for one, again, parts in zip(whole, quantise_int4(weights), halves, strict=True):
        np.testing.assert_array_equal(one, again)
        np.testing.assert_array_equal(one, np.concatenate(parts))


@pytest.mark.parametrize("importance", [np.ones(32), np.full(INNER, np.nan), np.linspace(-1, 1, INNER)])
def test_an_importance_that_is_none_is_refused(importance: np.ndarray) -> None:
    with pytest.raises(BadWeights, match="256 finite numbers"):
        quantise_int4(matrix("normal"), 32, importance.astype(np.float32))


def test_columns_that_nothing_reaches_are_quantised_all_the_same() -> None:
    weights = matrix("normal")
    found = dequantise_int4(*quantise_int4(weights, 32, np.zeros(INNER, np.float32)))
    assert np.abs(found - weights).max() < np.abs(weights).max() / 8


@pytest.mark.parametrize("block", [32, 128])
def test_the_kernel_takes_scales_of_either_sign(block: int) -> None:
    random = np.random.default_rng(4)
    codes = random.integers(0, 256, (64, INNER // block, block // 2), np.uint8)
    scales = random.uniform(0.01, 0.02, (64, INNER // block)).astype(np.float32)
    signs = np.where(random.random(scales.shape) < 0.5, -1, 1).astype(np.float32)
    node = helper.make_node("MatMulNBits", ["rows", "q", "s"], ["out"], domain="com.microsoft",
                            K=INNER, N=64, bits=4, block_size=block, accuracy_level=4)  # fmt: skip
    rows = random.integers(-127, 127, (5, INNER), endpoint=True).astype(np.float32)
    rows[:, ::block] = 127  # exact as int8 with a scale of one per row and block
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", INNER])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor("q", TensorProto.UINT8, codes.shape, codes.tobytes(), raw=True),
         helper.make_tensor("s", TensorProto.FLOAT, scales.shape, (scales * signs).tobytes(), raw=True)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    for part in (rows, rows[:1]):  # one row and many have kernels of their own
        want = part @ dequantise_int4(codes, scales * signs).T
        np.testing.assert_allclose(session.run(None, {"rows": part})[0], want, atol=1e-4 * np.abs(want).max())
