"""ONNX templates of one routed expert, and what a loaded one weighs.

`expert(x) = act(x @ gate_up + gate_up_bias) @ down + down_bias`, with gate and up stored as one matrix, gate columns
first. A template is chosen by (precision, activation, numerics) and by whether the file has the biases `gate_up_bias`
float32 [2*width] and `down_bias` float32 [hidden]. The graph holds no weights, only their places in the expert's tensor
file; `gate_up` [hidden, 2*width] and `down` [width, hidden] lie there as `matrices` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import TensorProto

from expertmesh_common.bundle.parts import NUMERICS, PRECISIONS
from expertmesh_common.bundle.tensors import TensorView
from expertmesh_common.errors import CorruptData, InvalidInput
from expertmesh_common.graphs.building import GraphBuilder
from expertmesh_common.graphs.matrices import Matrix, common_block, matrix_format

INPUT: Final = "rows"
OUTPUT: Final = "out"

# What a CPU session costs beside its weights, measured on onnxruntime 1.32 with the sessions of the worker, with its
# Python objects and bound row buffers.
_SESSION_BYTES: Final = {"fp32": 60_000, "fp16": 80_000, "bf16": 80_000, "int8": 88_000, "int4": 88_000}
_BYTES_PER_BIAS: Final = 5_000  # another node, beside the values
_CLAMP_BYTES: Final = 14_000  # four more nodes and their constants
_ROW_MORE_BYTES: Final = 14_000  # three more nodes and their constants
_LIMIT: Final = 7.0
_ALPHA: Final = 1.702
# Kernels of larger blocks compute rows in twos and a last odd one otherwise, which differs by rounding.
_LARGEST_BLOCK_FOR_LONE_ROWS: Final = 32

Views = Mapping[str, TensorView]


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """Everything that picks a template, but for the biases.

    `numerics` say how the expert computes, never what is stored: layout and bytes are the same.

    Raises:
        InvalidInput: no template for this precision, activation and numerics, or sizes it cannot hold.

    """

    hidden: int
    width: int
    precision: str
    activation: str = "swiglu"
    numerics: str = "exact"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS or self.activation not in _ACTIVATIONS:
            raise InvalidInput(
                f"no expert template for {self.precision}/{self.activation}: there are the precisions"
                f" {', '.join(PRECISIONS)} and the activations {', '.join(_ACTIVATIONS)}"
            )
        if self.numerics not in NUMERICS:
            raise InvalidInput(f"no expert template for numerics {self.numerics!r}: there are {', '.join(NUMERICS)}")
        step = matrix_format(self.precision).step
        if min(self.hidden, self.width) < 1 or self.hidden % step or self.width % step:
            raise InvalidInput(
                f"an {self.precision} expert of hidden {self.hidden} and width {self.width} is not possible:"
                f" both must be positive multiples of {step}"
            )


def expert_graph(shape: ExpertShape, views: Views, location: str) -> bytes:
    """A serialised ONNX model: input `rows` float32 [n, hidden], output `out` float32 [n, hidden].

    With numerics `exact` a row gets the same bits whatever its neighbours. Initialisers are external data: `location`
    is the name of the tensor file that `views` describes, in the folder that the session is told of.

    Raises:
        CorruptData: the file lacks a tensor, or one has another shape or dtype than `shape` asks for.

    """
    _check(views, tensor_layout(shape, views), location)
    graph = GraphBuilder(views, location, shape.precision)
    graph.input(INPUT, TensorProto.FLOAT, ("n", shape.hidden))
    graph.output(OUTPUT, TensorProto.FLOAT, ("n", shape.hidden))
    if shape.numerics == "exact" and _needs_one_row_more(shape, views):
        _with_one_row_more(graph, shape)
    else:
        _feed_forward(graph, shape, INPUT, OUTPUT)
    return graph.serialise(f"expert_{shape.precision}_{shape.activation}")


def tensor_layout(shape: ExpertShape, views: Views | None = None) -> tuple[TensorView, ...]:
    """The tensors an expert's file must hold; their offsets are 0, for the file decides them.

    Blocks and biases are those of the file that `views` describes; without, as a new file has them, and no biases.
    """
    needs = [need for m in _matrices(shape, views) for need in matrix_format(shape.precision).tensors(m)]
    return (*needs, *(need for need in _biases(shape) if views and need.name in views))


def resident_bytes(shape: ExpertShape, views: Views | None = None) -> int:
    """Bytes of process memory that one loaded instance takes: weights as the runtime keeps them, and its session.

    Those of `exact` whatever the numerics: a manifest says them once, and control loop and worker must agree.
    """
    weights = sum(matrix_format(shape.precision).resident_bytes(m) for m in _matrices(shape, views))
    biases = sum(need.size_bytes + _BYTES_PER_BIAS for need in _biases(shape) if views and need.name in views)
    clamp = _CLAMP_BYTES if shape.activation == "clamped-swiglu" else 0
    row = _ROW_MORE_BYTES if _needs_one_row_more(shape, views) else 0
    return weights + biases + clamp + row + _SESSION_BYTES[shape.precision]


def _matrices(shape: ExpertShape, views: Views | None) -> tuple[Matrix, Matrix]:
    form = matrix_format(shape.precision)
    block = common_block(shape.hidden, shape.width) if form.step > 1 else 0
    sizes = {"gate_up": (shape.hidden, 2 * shape.width), "down": (shape.width, shape.hidden)}
    found = {name: form.found(views or {}, name) for name in sizes}
    # A block of the file that does not divide the rows is no block of this shape; the check then names the tensor.
    blocks = {name: m.block if m and m.block and sizes[name][0] % m.block == 0 else block for name, m in found.items()}
    gate_up, down = (Matrix(name, *size, blocks[name]) for name, size in sizes.items())
    return gate_up, down


def _biases(shape: ExpertShape) -> tuple[TensorView, ...]:
    sizes = {"gate_up_bias": 2 * shape.width, "down_bias": shape.hidden}
    return tuple(TensorView(name, np.dtype(np.float32), (size,), 0, 4 * size) for name, size in sizes.items())


def _needs_one_row_more(shape: ExpertShape, views: Views | None) -> bool:
    return max(matrix.block for matrix in _matrices(shape, views)) > _LARGEST_BLOCK_FOR_LONE_ROWS


def _with_one_row_more(graph: GraphBuilder, shape: ExpertShape) -> None:
    """The expert of all rows and a copy of the first behind them, so that none of the caller's is a last odd row."""
    first = graph.node("Slice", (INPUT, graph.integers(0), graph.integers(1)))
    padded = graph.node("Concat", (INPUT, first), axis=0)
    full = _feed_forward(graph, shape, padded, "padded_out")
    graph.node("Slice", (full, graph.integers(0), graph.integers(-1)), out=OUTPUT)


def _feed_forward(graph: GraphBuilder, shape: ExpertShape, rows: str, out: str) -> str:
    both = _affine(graph, rows, "gate_up", (shape.hidden, 2 * shape.width), "gate_and_up")
    gate, up = graph.nodes("Split", (both,), ("gate", "up"), axis=1, num_outputs=2)
    gated = _ACTIVATIONS[shape.activation](graph, gate, up)
    return _affine(graph, gated, "down", (shape.width, shape.hidden), out)


def _affine(graph: GraphBuilder, left: str, name: str, size: tuple[int, int], out: str) -> str:
    bias = f"{name}_bias"
    if not graph.has_tensor(bias):
        return graph.matmul(left, name, *size, out=out)
    product = graph.matmul(left, name, *size, out=f"{out}_product")
    return graph.node("Add", (product, graph.tensor(bias, size[1:])), out=out)


def _swiglu(graph: GraphBuilder, gate: str, up: str) -> str:
    """SiLU(gate) * up: QuickGelu at alpha 1 is SiLU in one kernel."""
    graph.contrib("QuickGelu", (gate,), ("activated",), alpha=1.0)
    return graph.node("Mul", ("activated", up))


def _clamped_swiglu(graph: GraphBuilder, gate: str, up: str) -> str:
    """Gate at most 7, up within -7 .. 7; gate * sigmoid(1.702 * gate) * (up + 1), as gpt-oss has it."""
    lower, upper, one = (graph.node("Constant", (), value_float=value) for value in (-_LIMIT, _LIMIT, 1.0))
    graph.contrib("QuickGelu", (graph.node("Clip", (gate, "", upper)),), ("activated",), alpha=_ALPHA)
    shifted = graph.node("Add", (graph.node("Clip", (up, lower, upper)), one))
    return graph.node("Mul", ("activated", shifted))


_ACTIVATIONS: Final[Mapping[str, Callable[[GraphBuilder, str, str], str]]] = {
    "swiglu": _swiglu,
    "clamped-swiglu": _clamped_swiglu,
}


def _check(views: Views, needs: tuple[TensorView, ...], location: str) -> None:
    for need in needs:
        view = views.get(need.name)
        if view is None:
            known = ", ".join(sorted(views)) or "none"
            raise CorruptData(f"{location}: tensor {need.name} is missing; the file has {known}")
        if (view.dtype, view.shape) != (need.dtype, need.shape):
            raise CorruptData(
                f"{location}: tensor {need.name} is {view.dtype} {list(view.shape)},"
                f" expected {need.dtype} {list(need.shape)}"
            )
