"""Expert templates compute what numpy computes, and refuse what they cannot."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import onnx
import pytest

from expertmesh_common.bundle.tensors import read_views
from expertmesh_common.errors import CorruptData, InvalidInput
from expertmesh_common.graphs.expert import ExpertShape, expert_graph, resident_bytes, tensor_layout
from expertmesh_worker.providers import provider
from models.made_experts import SMALL, make_tensors, reference, store_expert

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
REAL = {precision: ExpertShape(576, 96, precision) for precision in PRECISIONS}
WIDE = {precision: ExpertShape(256, 128, precision) for precision in PRECISIONS}  # blocks of 128


def session(folder, shape, seed, **kind):
    path, _ = store_expert(folder, shape, seed, **kind)
    graph = expert_graph(shape, read_views(path), path.name)
    folded = shape.precision in {"fp16", "bf16"}
    return provider("cpu").open(graph, path.parent, folds_constants=folded)


def outputs(folder, shape, seed, rows, **kind):
    return session(folder, shape, seed, **kind).run(["out"], {"rows": rows})[0]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "clamped-swiglu"])
@pytest.mark.parametrize("sizes", [REAL, WIDE], ids=["blocks of 32", "blocks of 128"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_expert_computes_what_numpy_computes(tmp_path, precision, sizes, activation, biased):
    shape = dataclasses.replace(sizes[precision], activation=activation)
    for n in (1, 3, 70):
        rows = np.random.default_rng(n).standard_normal((n, shape.hidden)).astype(np.float32)

        expected = reference(shape, 7, rows, biased=biased)
        found = outputs(tmp_path, shape, 7, rows, biased=biased)

        # Activations of int8 and int4 are int8 on the way: 1 to 2 %.
        worst, usual = (0.05, 0.02) if precision in {"int8", "int4"} else (1e-5, 1e-6)
        assert found.shape == rows.shape
        assert np.abs(found - expected).max() <= worst * np.abs(expected).max()
        assert np.sqrt(np.mean((found - expected) ** 2)) <= usual * np.sqrt(np.mean(expected**2))


def test_the_clamps_bite(tmp_path):
    shape = ExpertShape(64, 32, "fp32", "clamped-swiglu")
    rows = 100 * np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)

    expected = reference(shape, 1, rows)

    assert np.abs(outputs(tmp_path, shape, 1, rows) - expected).max() <= 1e-5 * np.abs(expected).max()
    assert (
        np.abs(reference(dataclasses.replace(shape, activation="swiglu"), 1, rows)).max() > 2 * np.abs(expected).max()
    )


@pytest.mark.parametrize("activation", ["swiglu", "clamped-swiglu"])
@pytest.mark.parametrize("sizes", [REAL, WIDE], ids=["blocks of 32", "blocks of 128"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_gets_the_same_bits_whatever_its_neighbours(tmp_path, precision, sizes, activation):
    shape = dataclasses.replace(sizes[precision], activation=activation)
    opened = session(tmp_path, shape, 1, biased=True)
    rows = np.random.default_rng(3).standard_normal((301, shape.hidden)).astype(np.float32)
    rows *= np.exp(np.random.default_rng(4).standard_normal((301, 1))).astype(np.float32)

    def run(given):
        return opened.run(["out"], {"rows": given})[0]

    for row in (0, 150, 300):
        alone = run(rows[row : row + 1])[0]
        for neighbours in (1, 2, 7, 64, 300):
            for first in {max(0, row - neighbours), min(row, 300 - neighbours)}:
                np.testing.assert_array_equal(run(rows[first : first + neighbours + 1])[row - first], alone)


def nodes(folder, shape, **kind) -> Counter[str]:
    path, _ = store_expert(folder, shape, 2, **kind)
    graph = onnx.load_from_string(expert_graph(shape, read_views(path), path.name)).graph
    return Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "clamped-swiglu"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_fast_expert_computes_no_row_more_and_stays_as_close(tmp_path, precision, activation, biased):
    exact = dataclasses.replace(WIDE[precision], activation=activation)
    fast = dataclasses.replace(exact, numerics="fast")

    more = nodes(tmp_path, exact, biased=biased) - nodes(tmp_path, fast, biased=biased)
    assert more == {"Slice": 2, "Concat": 1, "Constant": 4}
    for n in (1, 2, 3):
        rows = np.random.default_rng(n).standard_normal((n, exact.hidden)).astype(np.float32)
        expected = reference(exact, 2, rows, biased=biased)
        found = outputs(tmp_path, fast, 2, rows, biased=biased)
        assert found.shape == rows.shape
        assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_numerics_change_nothing_that_is_stored_or_counted(tmp_path, precision):
    for exact in (REAL[precision], WIDE[precision]):
        fast = dataclasses.replace(exact, numerics="fast")
        assert tensor_layout(fast) == tensor_layout(exact)
        assert resident_bytes(fast) == resident_bytes(exact)
    assert nodes(tmp_path, dataclasses.replace(REAL[precision], numerics="fast")) == nodes(tmp_path, REAL[precision])


def test_numerics_of_a_later_version_are_refused_with_the_known_ones():
    with pytest.raises(InvalidInput, match="numerics 'quick': there are exact, fast"):
        ExpertShape(64, 32, "fp32", numerics="quick")


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_file_tells_its_blocks(tmp_path, precision):
    shape = WIDE[precision]
    rows = np.random.default_rng(0).standard_normal((4, shape.hidden)).astype(np.float32)
    path, _ = store_expert(tmp_path, shape, 5, block=32)

    scales = {need.name: need.shape for need in tensor_layout(shape, read_views(path))}

    assert scales["gate_up_s"] == (256, 8)
    assert scales["down_s"] == (256, 4)
    assert resident_bytes(shape, read_views(path)) > resident_bytes(shape)
    assert np.isfinite(outputs(tmp_path, shape, 5, rows, block=32)).all()


def test_biases_count(tmp_path):
    path, _ = store_expert(tmp_path, SMALL, 5, biased=True)

    assert resident_bytes(SMALL, read_views(path)) > resident_bytes(SMALL)


def test_the_layout_is_what_is_stored():
    for shape in (*REAL.values(), *WIDE.values()):
        expected = {name: (value.dtype, value.shape) for name, value in make_tensors(shape, 0).items()}
        assert expected == {need.name: (need.dtype, need.shape) for need in tensor_layout(shape)}


def test_resident_bytes_count_at_least_the_weights():
    for shape in REAL.values():
        assert resident_bytes(shape) > sum(view.size_bytes for view in tensor_layout(shape))


@pytest.mark.parametrize(("precision", "activation"), [("fp64", "swiglu"), ("fp32", "relu")])
def test_an_unknown_template_names_the_known_ones(precision, activation):
    with pytest.raises(
        InvalidInput, match=rf"{precision}/{activation}.*fp32, fp16, bf16, int8, int4.*swiglu, clamped-"
    ):
        ExpertShape(64, 32, precision, activation)


@pytest.mark.parametrize(("hidden", "width"), [(0, 32), (576, 100), (33, 32), (-32, 32)])
def test_sizes_that_do_not_fit_the_blocks_are_refused(hidden, width):
    for precision in ("int8", "int4"):
        with pytest.raises(InvalidInput, match="multiples of 32"):
            ExpertShape(hidden, width, precision)


def test_a_file_of_another_shape_is_refused(tmp_path):
    path, _ = store_expert(tmp_path, SMALL, 0)

    with pytest.raises(CorruptData, match=r"gate_up is float32 \[64, 64\], expected float32 \[64, 128\]"):
        expert_graph(dataclasses.replace(SMALL, width=64), read_views(path), path.name)


def test_a_file_of_another_precision_is_refused(tmp_path):
    path, _ = store_expert(tmp_path, SMALL, 0)

    with pytest.raises(CorruptData, match="gate_up_q is missing; the file has down, gate_up"):
        expert_graph(dataclasses.replace(SMALL, precision="int4"), read_views(path), path.name)
