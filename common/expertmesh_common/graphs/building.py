"""Building ONNX graphs whose initialisers are pointers into a tensor file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from expertmesh_common.bundle.manifest import Precision
from expertmesh_common.bundle.tensors import TensorView
from expertmesh_common.errors import InvalidInput
from expertmesh_common.graphs.matrices import HALVES, Matrix, matrix_format

__all__ = ["GraphBuilder"]

_OPSET, _IR_VERSION = 21, 10
_CONTRIB = "com.microsoft"

Dimensions = Sequence[int | str]
Attribute = int | float | Sequence[int]


class GraphBuilder:
    """Collects nodes, inputs, outputs and initialisers of one graph. Only tensors that are asked for get in."""

    def __init__(self, views: Mapping[str, TensorView], location: str, precision: Precision | str) -> None:
        self._views = views
        self._location = location
        self._format = matrix_format(precision)
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initialisers: dict[str, TensorProto] = {}

    def input(self, name: str, dtype: int, shape: Dimensions) -> None:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def output(self, name: str, dtype: int, shape: Dimensions) -> None:
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def node(self, kind: str, inputs: Sequence[str], *, out: str | None = None, **attributes: Attribute) -> str:
        """Add a standard operator with one output; returns the output's name."""
        return self.nodes(kind, inputs, (out or f"{kind}_{len(self._nodes)}",), **attributes)[0]

    def nodes(self, kind: str, inputs: Sequence[str], outs: Sequence[str], **attributes: Attribute) -> Sequence[str]:
        """Add a standard operator with several outputs."""
        self._append(helper.make_node(kind, list(inputs), list(outs)), attributes)
        return outs

    def contrib(self, kind: str, inputs: Sequence[str], outs: Sequence[str], **attributes: Attribute) -> None:
        """Add an operator of the runtime's own domain."""
        self._append(helper.make_node(kind, list(inputs), list(outs), domain=_CONTRIB), attributes)

    def integers(self, *values: int) -> str:
        """A constant int64 [values], as shapes, sizes and axes are given to operators."""
        return self.node("Constant", (), value_ints=values)

    def tensor(self, name: str, shape: Sequence[int | None]) -> str:
        """A tensor of the file as an initialiser; None in `shape` stands for any size.

        Raises:
            InvalidInput: it is missing or has another shape.

        """
        view = self._view(name)
        fits = len(view.shape) == len(shape) and all(w in (None, g) for w, g in zip(shape, view.shape, strict=True))
        if not fits:
            raise InvalidInput(f"tensor {name} has shape {list(view.shape)}, the graph needs {list(shape)}")
        self._initialisers.setdefault(name, _external(view, self._location))
        return name

    def has_tensor(self, name: str) -> bool:
        return name in self._views

    def rows_of(self, name: str, width: int, indices: str) -> str:
        """Rows of the table `name` [any, width], by `indices` int64 [...]: float32 [..., width].

        The table is float32, fp16 or bf16.

        Raises:
            InvalidInput: the table is missing or has another shape or type.

        """
        rows = self.node("Gather", (self.tensor(name, (None, width)), indices), axis=0)
        dtype = self._view(name).dtype
        if dtype == np.float32:
            return rows
        if dtype not in HALVES.values():
            raise InvalidInput(f"table {name} is {dtype}; the graph reads float32, {' and '.join(HALVES)}")
        # Rows are widened, never the table: what is cast are the few that were looked up.
        return self.node("Cast", (rows,), to=TensorProto.FLOAT)

    def has_matrix(self, name: str) -> bool:
        return self._format.key(name) in self._views

    def matrix_columns(self, name: str, rows: int) -> int:
        """Columns of a matrix of `rows` rows at this graph's precision."""
        matrix = self._matrix(name)
        if matrix.rows != rows:
            raise InvalidInput(f"matrix {name} has {matrix.rows} rows, the graph needs {rows}")
        return matrix.columns

    def matmul(self, left: str, name: str, rows: int, columns: int, *, out: str | None = None) -> str:
        """Left [..., rows] @ matrix `name` [rows, columns], from whichever form the precision has."""
        out = out or f"{name}_out"
        matrix = Matrix(name, rows, columns, self._matrix(name).block)
        for need in self._format.tensors(matrix):
            self.tensor(need.name, need.shape)
        self._nodes += self._format.product(matrix, left, out)
        return out

    def serialise(self, name: str) -> bytes:
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._initialisers.values()))
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="expertmesh")
        return bytes(model.SerializeToString(deterministic=True))

    def _append(self, node: onnx.NodeProto, attributes: Mapping[str, Attribute]) -> None:
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self._nodes.append(node)

    def _matrix(self, name: str) -> Matrix:
        view = self._view(self._format.key(name))
        found = self._format.found(self._views, name)
        if found is None:
            raise InvalidInput(f"tensor {view.name} has shape {list(view.shape)}, which is no matrix of this precision")
        return found

    def _view(self, name: str) -> TensorView:
        if name not in self._views:
            raise InvalidInput(f"tensor {name} is missing; the file has {sorted(self._views)}")
        return self._views[name]


def _external(view: TensorView, location: str) -> TensorProto:
    tensor = TensorProto(name=view.name, data_type=helper.np_dtype_to_tensor_dtype(view.dtype), dims=view.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(view.offset)), ("length", str(view.size_bytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor
