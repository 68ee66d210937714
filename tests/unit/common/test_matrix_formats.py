"""Matrices at every precision: what the forge writes is what the layout says, and stands for the same numbers."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from expertmesh_common.bundle.tensors import encode_tensors, read_tensors, tensor_views
from expertmesh_common.errors import InvalidInput
from expertmesh_common.graphs.building import GraphBuilder
from expertmesh_common.graphs.matrices import BLOCKS, Matrix, common_block, matrix_format
from expertmesh_forge.errors import BadWeights, UnsupportedModel
from expertmesh_forge.formats import decode_matrix, encode_matrix

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
ROWS, COLUMNS = 256, 48
LARGEST_ERROR = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8, "int8": 1 / 128, "int4": 1 / 8}  # of the matrix's peak


def weights(rows=ROWS, seed=0):
    return np.random.default_rng(seed).standard_normal((COLUMNS, rows)).astype(np.float32)


def written(precision, matrix, block=None):
    data = encode_tensors(encode_matrix("w", matrix, precision, block))
    return data, tensor_views(data, len(data), "made")


def test_the_largest_common_block_is_taken():
    assert [common_block(*sizes) for sizes in ((768, 512), (576, 128), (2048, 1408), (33,))] == [128, 32, 128, 32]


@pytest.mark.parametrize("block", [None, *BLOCKS])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_written_is_what_the_layout_asks_for(precision, block):
    _, views = written(precision, weights(), block)
    form = matrix_format(precision)

    found = form.found(views, "w")

    assert found == Matrix("w", ROWS, COLUMNS, (block or 128) if form.step > 1 else 0)
    needs = {need.name: (need.dtype, need.shape, need.size_bytes) for need in form.tensors(found)}
    assert needs == {view.name: (view.dtype, view.shape, view.size_bytes) for view in views.values()}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_matrix_comes_back_as_exact_as_its_precision_is(tmp_path, precision, block):
    matrix = weights()
    (tmp_path / "file").write_bytes(written(precision, matrix, block)[0])

    back = decode_matrix("w", read_tensors(tmp_path / "file"))

    assert back.dtype == np.float32
    assert np.abs(back - matrix).max() <= LARGEST_ERROR[precision] * np.abs(matrix).max()
    assert (np.abs(back - matrix).max() > 0) == (precision != "fp32")


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_runtime_multiplies_with_the_decoded_matrix(tmp_path, precision, block):
    path = tmp_path / "file"
    data, views = written(precision, weights(), block)
    path.write_bytes(data)
    graph = GraphBuilder(views, path.name, precision)
    graph.input("x", TensorProto.FLOAT, ("batch", "steps", ROWS))
    graph.output("y", TensorProto.FLOAT, ("batch", "steps", COLUMNS))
    assert graph.has_matrix("w")
    assert graph.matrix_columns("w", ROWS) == COLUMNS
    graph.matmul("x", "w", ROWS, COLUMNS, out="y")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    session = onnxruntime.InferenceSession(graph.serialise("one"), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, 3, ROWS)).astype(np.float32)

    expected = x @ decode_matrix("w", read_tensors(path)).T
    (found,) = session.run(None, {"x": x})

    allowed = 0.03 if precision in {"int8", "int4"} else 1e-5
    assert np.abs(found - expected).max() <= allowed * np.abs(expected).max()


def test_an_unknown_precision_names_the_known_ones():
    with pytest.raises(InvalidInput, match="fp32, fp16, bf16, int8, int4"):
        matrix_format("int2")


def test_a_graph_refuses_a_matrix_of_other_rows_and_of_no_format():
    _, views = written("int4", weights())
    graph = GraphBuilder(views, "file", "int4")

    with pytest.raises(InvalidInput, match="matrix w has 256 rows, the graph needs 64"):
        graph.matrix_columns("w", 64)
    with pytest.raises(InvalidInput, match="w_q has shape"):
        GraphBuilder(views, "file", "int8").matrix_columns("w", 256)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_rows_that_do_not_fit_the_blocks_are_refused(precision):
    with pytest.raises(UnsupportedModel, match="multiple of 32, not 40"):
        encode_matrix("w", weights(40), precision)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_values_that_a_precision_cannot_hold_are_refused(precision):
    matrix = weights()
    matrix[3, 5] = 1e6 if precision == "fp16" else np.inf

    with pytest.raises(BadWeights):
        encode_matrix("w", matrix, precision)
