"""Joining trunk segments of a bundle and blocks of local experts into one graph, so that one call runs them all.

The segments are taken as they lie in the bundle; only their names change, so whatever a family's segment does, it does
here as well. Values of layer i are called `l<i>_<name>`; its caches are the inputs `past_key_<i>`, `past_value_<i>` and
the outputs `present_key_<i>`, `present_value_<i>`. Inputs that all layers share keep their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

__all__ = ["Block", "join"]

SHARED = frozenset({"token_ids", "seqlens_k", "total_sequence_length", "rope_cos", "rope_sin"})
CACHES = ("past_key", "past_value", "present_key", "present_value")
_OPSETS = (helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1))
_IR_VERSION = 10


@dataclass(frozen=True, slots=True)
class Block:
    """The routed experts of one layer as nodes from `rows` to `combined`, float32 [batch, steps, hidden] each.

    Every name is local to the layer. `scores` is what the gate saw, float32 [batch * steps, columns]. `initialisers`
    are declared external; the session gets their values in memory. A block that `includes_shared` also computes the
    layer's shared experts, which the segment then leaves out.
    """

    nodes: Sequence[NodeProto]
    initialisers: Sequence[TensorProto]
    scores: str
    columns: int
    includes_shared: bool = False


def join(
    segments: Sequence[bytes], blocks: Sequence[Block | None], *, first: int = 0, ends_in_rows: bool = False
) -> bytes:
    """One graph of the layers from `first` on, without the head; `blocks[i]` belongs to layer first + i.

    A block is None for a dense layer, and for the last one of a graph that `ends_in_rows`: its experts are elsewhere.

    Inputs are those of the first segment and every layer's caches; outputs the caches, `residual_out` float32
    [B, S, hidden], beside it `rows` for the experts elsewhere or else `combined_out`, of the same shape, and `scores`
    float32 [B * S, blocks * columns] where all blocks have equally many columns.
    """
    assert not ends_in_rows or blocks[-1] is None, "a layer has its experts here or elsewhere"
    joined = _Joined(first)
    for at, (data, block) in enumerate(zip(segments, blocks, strict=True)):
        graph = onnx.load_model_from_string(data).graph
        if block is not None and block.includes_shared:
            _leave_out_shared(graph)
        joined.segment(first + at, graph, dense_before=at > 0 and blocks[at - 1] is None)
        if block is not None:
            joined.block(first + at, block)
    return joined.serialise(first + len(segments) - 1, None if ends_in_rows else bool(blocks[-1]))


class _Joined:
    def __init__(self, first: int) -> None:
        self._first = first
        self._nodes: list[NodeProto] = []
        self._inputs: dict[str, ValueInfoProto] = {}
        self._outputs: list[ValueInfoProto] = []
        self._initialisers: list[TensorProto] = []
        self._scores: list[tuple[str, int]] = []
        self._residual: list[int | str | None] = []

    def segment(self, index: int, graph: onnx.GraphProto, *, dense_before: bool) -> None:
        names = self._names(index)
        if dense_before:  # nothing was routed: what the segment adds is zero
            self._nodes.append(_zeros_like(names.previous("residual_out"), names.previous("combined")))
        for value in graph.input:
            name = names(value.name)
            if value.name in SHARED or value.name in CACHES or index == self._first:
                self._inputs.setdefault(name, _renamed(value, name))
        for value in graph.output:
            if value.name in CACHES:
                self._outputs.append(_renamed(value, names(value.name)))
            elif value.name == "residual_out":
                self._residual = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        self._take(graph.node, graph.initializer, names)

    def block(self, index: int, block: Block) -> None:
        names = self._names(index)
        self._take(block.nodes, block.initialisers, names)
        self._scores.append((names(block.scores), block.columns))

    def serialise(self, last: int, last_is_routed: bool | None) -> bytes:
        """`last_is_routed` is None where the experts of the last layer are elsewhere."""
        names = self._names(last + 1)
        if last_is_routed is False:
            self._nodes.append(_zeros_like(names.previous("residual_out"), names.previous("combined")))
        beside = ("rows", "rows") if last_is_routed is None else ("combined", "combined_out")
        for source, name in (("residual_out", "residual_out"), beside):
            self._nodes.append(helper.make_node("Identity", [names.previous(source)], [name]))
            self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, self._residual))
        if len({columns for _, columns in self._scores}) == 1:
            self._gather_scores(self._scores[0][1])
        graph = helper.make_graph(self._nodes, "joined", list(self._inputs.values()), self._outputs, self._initialisers)
        model = helper.make_model(
            graph, opset_imports=list(_OPSETS), ir_version=_IR_VERSION, producer_name="expertmesh"
        )
        return bytes(model.SerializeToString())

    def _names(self, index: int) -> _Names:
        return _Names(index, begins=index == self._first)

    def _gather_scores(self, columns: int) -> None:
        names = [name for name, _ in self._scores]
        self._nodes.append(helper.make_node("Concat", names, ["scores"], axis=1))
        shape: list[int | str | None] = ["rows", len(names) * columns]
        self._outputs.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape))

    def _take(self, nodes: Sequence[NodeProto], initialisers: Sequence[TensorProto], names: _Names) -> None:
        for node in nodes:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = ""
            copy.input[:] = [names(name) for name in node.input]
            copy.output[:] = [names(name) for name in node.output]
            self._nodes.append(copy)
        for tensor in initialisers:
            renamed = TensorProto()
            renamed.CopyFrom(tensor)
            renamed.name = names(tensor.name)
            self._initialisers.append(renamed)


class _Names:
    """Names of one layer's values in the joined graph; a layer that `begins` it takes what comes from outside."""

    def __init__(self, index: int, *, begins: bool) -> None:
        self._index = index
        self._known: Mapping[str, str] = {
            **{name: f"{name}_{index}" for name in CACHES},
            **{name: name for name in SHARED},
            "": "",
            "residual": "residual" if begins else self.previous("residual_out"),
            "combined": "combined" if begins else self.previous("combined"),
        }

    def __call__(self, name: str) -> str:
        return self._known.get(name, f"l{self._index}_{name}")

    def previous(self, name: str) -> str:
        """The same of the layer before."""
        return f"l{self._index - 1}_{'routed' if name == 'combined' else name}"


def _leave_out_shared(graph: onnx.GraphProto) -> None:
    """Take the shared experts out of a segment: `residual_out` is then what they were added to."""
    (last,) = (node for node in graph.node if "residual_out" in node.output)
    assert last.op_type == "Add", "a segment with shared experts ends with adding them"
    residual = last.input[0]
    graph.node.remove(last)
    for node in graph.node:
        node.output[:] = ["residual_out" if name == residual else name for name in node.output]
        node.input[:] = ["residual_out" if name == residual else name for name in node.input]
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):  # nodes are sorted: who uses a value comes after who makes it
        if used.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            used.update(node.input)
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


def _zeros_like(source: str, out: str) -> NodeProto:
    return helper.make_node("Sub", [source, source], [out])


def _renamed(value: ValueInfoProto, name: str) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy
