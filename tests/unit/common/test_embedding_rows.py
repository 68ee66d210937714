"""Rows of the embedding in the first segment: looked up in the type that the file has, widened after that."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from expertmesh_common.bundle.tensors import encode_tensors, tensor_views
from expertmesh_common.errors import InvalidInput
from expertmesh_common.graphs.building import GraphBuilder
from expertmesh_common.graphs.stitching import join
from expertmesh_common.graphs.trunk import TrunkShape, segment_graph
from models import tiny_bundle as tiny

SHAPE = TrunkShape(tiny.LAYERS, tiny.HIDDEN, tiny.HEADS, tiny.KV_HEADS, tiny.HEAD_DIM, tiny.EPSILON)
HALVES = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}
TABLE = np.random.default_rng(0).standard_normal((300, tiny.HIDDEN)).astype(np.float32)
TABLE[7, :2] = 1e-7, 1e-40  # below what fp16 and bf16 hold at full precision


def look_up(folder, table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    data = encode_tensors({"table": table})
    (folder / "file").write_bytes(data)
    graph = GraphBuilder(tensor_views(data, len(data), "made"), "file", "int4")
    graph.input("ids", TensorProto.INT64, ("batch", "steps"))
    rows = graph.rows_of("table", table.shape[1], "ids")
    graph.output(rows, TensorProto.FLOAT, ("batch", "steps", table.shape[1]))
    return session(graph.serialise("rows"), folder).run(None, {"ids": ids})[0]


def session(graph: bytes, folder, **settings) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    for name, value in settings.items():
        setattr(options, name, value)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def first_segment(folder, dtype) -> bytes:
    tensors = tiny._layer_tensors(np.random.default_rng(0), first=True)
    data = encode_tensors(tensors | {"embed": tensors["embed"].astype(dtype)})
    (folder / "file").write_bytes(data)
    return segment_graph(SHAPE, 0, "fp32", tensor_views(data, len(data), "made"), "file")


@pytest.mark.parametrize("dtype", [np.float32, *HALVES.values()])
def test_rows_are_those_of_the_table_to_the_bit(tmp_path, dtype) -> None:
    table, ids = TABLE.astype(dtype), np.array([[0, 299, 7], [7, 7, 150]])

    rows = look_up(tmp_path, table, ids)

    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, table.astype(np.float32)[ids])


def test_a_table_of_codes_is_refused(tmp_path) -> None:
    with pytest.raises(InvalidInput, match="table table is uint8; the graph reads float32, fp16 and bf16"):
        look_up(tmp_path, TABLE.astype(np.uint8), np.array([[0]]))


def test_a_table_of_float32_is_read_by_the_graph_that_older_bundles_have(tmp_path) -> None:
    nodes = onnx.load_model_from_string(first_segment(tmp_path, np.float32)).graph.node

    assert [node.op_type for node in nodes[:2]] == ["Gather", "SimplifiedLayerNormalization"]


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(("kind", "dtype"), HALVES.items())
def test_the_runtime_never_widens_the_table(tmp_path, kind, dtype, joined) -> None:
    graph = first_segment(tmp_path, dtype)
    if joined:
        graph = join([graph], [None], ends_in_rows=True)
    path = tmp_path / "optimised.onnx"

    session(graph, tmp_path, optimized_model_filepath=str(path))

    optimised = onnx.load_model(path, load_external_data=False).graph
    kinds = [t.data_type for t in optimised.initializer if tuple(t.dims) == (tiny.VOCABULARY, tiny.HIDDEN)]
    assert kinds == [kind]
