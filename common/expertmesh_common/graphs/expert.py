"""ONNX templates of one routed expert, and what a loaded one weighs.

`expert(x) = (act(x @ gate) * (x @ up)) @ down`, with gate and up stored as one matrix, gate columns first. A template
is chosen by (precision, activation); the graph holds no weights, only their places in the expert's tensor file:

    fp32: `gate_up` float32 [hidden, 2*width], `down` float32 [width, hidden]
    int4: `gate_up_q` uint8 [2*width, hidden/32, 16], `gate_up_s` float32 [2*width, hidden/32],
          `down_q` uint8 [hidden, width/32, 16], `down_s` float32 [hidden, width/32]; zero point 8, low nibble first
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from onnx import NodeProto, TensorProto, helper

from expertmesh_common.bundle.tensors import TensorView
from expertmesh_common.errors import CorruptData, InvalidInput

BLOCK: Final = 32
INPUT: Final = "rows"
OUTPUT: Final = "out"
_OPSET: Final = 18  # Split with num_outputs
_IR_VERSION: Final = 10

# What a CPU session costs beside its weights, measured on onnxruntime 1.32 with `session_options` of the worker over
# hidden 64-2048 and width 32-1024 (43-50 kB and 70-75 kB), plus its Python objects and bound row buffers.
_SESSION_BYTES: Final = {"fp32": 60_000, "int4": 88_000}
# The int4 kernel keeps the scales it was given, a packed copy of them and one sum per block.
_COPIES_OF_SCALES: Final = 3


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """Everything that picks a template.

    Raises:
        InvalidInput: no template for this precision and activation, or sizes it cannot hold.

    """

    hidden: int
    width: int
    precision: str
    activation: str = "swiglu"

    def __post_init__(self) -> None:
        if (self.precision, self.activation) not in _TEMPLATES:
            known = ", ".join(f"{p}/{a}" for p, a in sorted(_TEMPLATES))
            raise InvalidInput(f"no expert template for {self.precision}/{self.activation}: there are {known}")
        step = BLOCK if self.precision == "int4" else 1
        if min(self.hidden, self.width) < 1 or self.hidden % step or self.width % step:
            raise InvalidInput(
                f"an {self.precision} expert of hidden {self.hidden} and width {self.width} is not possible:"
                f" both must be positive multiples of {step}"
            )


def expert_graph(shape: ExpertShape, views: Mapping[str, TensorView], location: str) -> bytes:
    """A serialised ONNX model: input `rows` float32 [n, hidden], output `out` float32 [n, hidden].

    Its initialisers are external data: `location` is the name of the tensor file that `views` describes, in the folder
    that the session is told of.

    Raises:
        CorruptData: the file lacks a tensor, or one has another shape or dtype than `shape` asks for.

    """
    template = _TEMPLATES[shape.precision, shape.activation]
    weights = [_initialiser(_checked(views, need, location), location) for need in tensor_layout(shape)]
    rows = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", shape.hidden])
    out = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", shape.hidden])
    graph = helper.make_graph(template(shape), f"expert_{shape.precision}_{shape.activation}", [rows], [out], weights)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="expertmesh")
    data: bytes = model.SerializeToString()
    return data


def tensor_layout(shape: ExpertShape) -> tuple[TensorView, ...]:
    """The tensors an expert's file must hold; their offsets are 0, for the file decides them."""
    matrices = {"gate_up": (shape.hidden, 2 * shape.width), "down": (shape.width, shape.hidden)}
    if shape.precision == "fp32":
        return tuple(_need(name, np.float32, size) for name, size in matrices.items())
    needs: list[TensorView] = []
    for name, (inner, outer) in matrices.items():
        needs.append(_need(f"{name}_q", np.uint8, (outer, inner // BLOCK, BLOCK // 2)))
        needs.append(_need(f"{name}_s", np.float32, (outer, inner // BLOCK)))
    return tuple(needs)


def resident_bytes(shape: ExpertShape) -> int:
    """Bytes of process memory that one loaded instance takes: weights as the runtime keeps them, and its session."""
    sizes = {view.name: view.size_bytes for view in tensor_layout(shape)}
    scales = sum(size for name, size in sizes.items() if name.endswith("_s"))
    return sum(sizes.values()) + (_COPIES_OF_SCALES - 1) * scales + _SESSION_BYTES[shape.precision]


def _swiglu(multiply: Multiply, shape: ExpertShape) -> list[NodeProto]:
    """The gated unit around any kind of matrix product; QuickGelu at alpha 1 is SiLU in one kernel."""
    return [
        multiply(INPUT, "gate_up", "gate_and_up", shape.hidden, 2 * shape.width),
        helper.make_node("Split", ["gate_and_up"], ["gate", "up"], axis=1, num_outputs=2),
        helper.make_node("QuickGelu", ["gate"], ["activated"], domain="com.microsoft", alpha=1.0),
        helper.make_node("Mul", ["activated", "up"], ["gated"]),
        multiply("gated", "down", OUTPUT, shape.width, shape.hidden),
    ]


def _multiply_fp32(left: str, weights: str, product: str, _inner: int, _outer: int) -> NodeProto:
    return helper.make_node("MatMul", [left, weights], [product])


def _multiply_int4(left: str, weights: str, product: str, inner: int, outer: int) -> NodeProto:
    # Level 4 multiplies in int8: 1.2 % off the dequantised product, far less than what 4 bits cost by themselves, but
    # up to 1.7 times as fast at few rows, and a row gets the same bits whatever its neighbours (other levels differ).
    return helper.make_node(
        "MatMulNBits", [left, f"{weights}_q", f"{weights}_s"], [product],
        domain="com.microsoft", K=inner, N=outer, bits=4, block_size=BLOCK, accuracy_level=4,
    )  # fmt: skip


Multiply = Callable[[str, str, str, int, int], NodeProto]
_TEMPLATES: Final[Mapping[tuple[str, str], Callable[[ExpertShape], list[NodeProto]]]] = {
    ("fp32", "swiglu"): partial(_swiglu, _multiply_fp32),
    ("int4", "swiglu"): partial(_swiglu, _multiply_int4),
}


def _need(name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> TensorView:
    return TensorView(name, np.dtype(dtype), shape, 0, int(np.prod(shape)) * np.dtype(dtype).itemsize)


def _checked(views: Mapping[str, TensorView], need: TensorView, location: str) -> TensorView:
    view = views.get(need.name)
    if view is None:
        raise CorruptData(
            f"{location}: tensor {need.name} is missing; the file has {', '.join(sorted(views)) or 'none'}"
        )
    if (view.dtype, view.shape) != (need.dtype, need.shape):
        raise CorruptData(
            f"{location}: tensor {need.name} is {view.dtype} {list(view.shape)},"
            f" expected {need.dtype} {list(need.shape)}"
        )
    return view


def _initialiser(view: TensorView, location: str) -> TensorProto:
    tensor = TensorProto(
        name=view.name,
        data_type=helper.np_dtype_to_tensor_dtype(view.dtype),
        dims=view.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", view.offset), ("length", view.size_bytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
