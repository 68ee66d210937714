"""Expert templates compute what numpy computes, and refuse what they cannot."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from expertmesh_common.bundle.tensors import read_views
from expertmesh_common.errors import CorruptData, InvalidInput
from expertmesh_common.graphs.expert import ExpertShape, expert_graph, resident_bytes, tensor_layout
from expertmesh_worker.providers import provider
from models.made_experts import SMALL, make_tensors, reference, store_expert

REAL = {"fp32": ExpertShape(576, 96, "fp32"), "int4": ExpertShape(576, 96, "int4")}


def outputs(folder, shape, seed, rows):
    path, _ = store_expert(folder, shape, seed)
    graph = expert_graph(shape, read_views(path), path.name)
    return provider("cpu").open(graph, path.parent).run(["out"], {"rows": rows})[0]


@pytest.mark.parametrize("n", [1, 3, 70])
def test_fp32_expert_equals_numpy(tmp_path, n):
    shape = REAL["fp32"]
    rows = np.random.default_rng(n).standard_normal((n, shape.hidden)).astype(np.float32)

    expected = reference(shape, 7, rows)

    assert np.abs(outputs(tmp_path, shape, 7, rows) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("n", [1, 3, 70])
def test_int4_expert_equals_its_dequantised_weights_within_the_int8_arithmetic(tmp_path, n):
    shape = REAL["int4"]
    rows = np.random.default_rng(n).standard_normal((n, shape.hidden)).astype(np.float32)

    expected = reference(shape, 7, rows)
    found = outputs(tmp_path, shape, 7, rows)

    assert np.abs(found - expected).max() <= 0.03 * np.abs(expected).max()
    assert np.sqrt(np.mean((found - expected) ** 2)) <= 0.015 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_row_does_not_depend_on_its_neighbours(tmp_path, precision):
    shape = REAL[precision]
    rows = np.random.default_rng(3).standard_normal((33, shape.hidden)).astype(np.float32)

    together = outputs(tmp_path, shape, 1, rows)
    alone = np.concatenate([outputs(tmp_path, shape, 1, rows[i : i + 1]) for i in (0, 16, 32)])

    assert np.abs(together[[0, 16, 32]] - alone).max() <= 1e-6 * np.abs(together).max()


def test_the_layout_is_what_is_stored():
    for shape in REAL.values():
        expected = {name: (value.dtype, value.shape) for name, value in make_tensors(shape, 0).items()}
        assert expected == {need.name: (need.dtype, need.shape) for need in tensor_layout(shape)}


def test_resident_bytes_count_at_least_the_weights():
    for shape in REAL.values():
        assert resident_bytes(shape) > sum(view.size_bytes for view in tensor_layout(shape))


def test_an_unknown_template_names_the_known_ones():
    with pytest.raises(InvalidInput, match=r"fp16/swiglu.*fp32/swiglu, int4/swiglu"):
        ExpertShape(64, 32, "fp16")


@pytest.mark.parametrize(("hidden", "width"), [(0, 32), (576, 100), (33, 32), (-32, 32)])
def test_sizes_that_do_not_fit_the_blocks_are_refused(hidden, width):
    with pytest.raises(InvalidInput, match="multiples of 32"):
        ExpertShape(hidden, width, "int4")


def test_a_file_of_another_shape_is_refused(tmp_path):
    path, _ = store_expert(tmp_path, SMALL, 0)

    with pytest.raises(CorruptData, match=r"gate_up is float32 \[64, 64\], expected float32 \[64, 128\]"):
        expert_graph(dataclasses.replace(SMALL, width=64), read_views(path), path.name)


def test_a_file_of_another_precision_is_refused(tmp_path):
    path, _ = store_expert(tmp_path, SMALL, 0)

    with pytest.raises(CorruptData, match="gate_up_q is missing; the file has down, gate_up"):
        expert_graph(dataclasses.replace(SMALL, precision="int4"), read_views(path), path.name)
