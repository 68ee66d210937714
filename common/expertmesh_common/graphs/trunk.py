"""Trunk segments of a token MoE as ONNX graphs: what runs between two MoE layers, in as few operators as there are.

Segment i < layers adds the routed output of layer i - 1, attends, adds the shared experts of layer i and hands out the
normed rows for that layer's routed experts; segment `layers` is the head. Weights stay outside, in the segment's
safetensors blob; the graph is a few hundred bytes of pointers into it.

Tensors of the blob, with hidden d, heads H, kv heads G, head size e, shared width s:

    every layer      attn_norm [d], qkv [d, (H+2G)e], o [H*e, d], ffn_norm [d]
    if s > 0         shared_gate_up [d, 2s] (gate columns first), shared_down [s, d]
    segment 0 also   embed [vocabulary, d]
    the head         final_norm [d], lm_head [d, vocabulary]

All are float32. At int4 a matrix W [k, n] is `<name>_q` uint8 [n, k/32, 16] and `<name>_s` float32 [n, k/32].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from expertmesh_common.bundle.manifest import Precision
from expertmesh_common.bundle.tensors import TensorView
from expertmesh_common.errors import InvalidInput
from expertmesh_common.graphs.building import GraphBuilder

__all__ = ["TrunkShape", "rope_tables", "segment_graph"]

Table = NDArray[np.float32]

_RESIDUAL = ("batch", "steps", "hidden")


@dataclass(frozen=True, slots=True)
class TrunkShape:
    """Sizes of the trunk. Shared widths and the vocabulary are read from the tensors themselves."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_epsilon: float


def rope_tables(
    rope_base: float, head_dim: int, context_tokens: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The inputs `rope_cos` and `rope_sin` of layer segments, float32 [context_tokens, head_dim / 2]."""
    frequencies = rope_base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angles = np.outer(np.arange(context_tokens, dtype=np.float64), frequencies)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def segment_graph(
    shape: TrunkShape, index: int, precision: Precision, views: Mapping[str, TensorView], location: str
) -> bytes:
    """The ONNX graph of segment `index`, serialised.

    Inputs are `token_ids` int64 [B, S] for segment 0, else `residual` and `combined` float32 [B, S, hidden]. Layer
    segments also take `past_key`, `past_value` float32 [B, kv_heads, context, head_dim] (the same buffers as the
    outputs `present_key`, `present_value`), `seqlens_k` int32 [B] (tokens in the cache after this call, minus one),
    `total_sequence_length` int32 [] (the largest of them, plus one) and the tables of `rope_tables` as inputs
    `rope_cos`, `rope_sin`, so that all segments share one copy; their outputs are `residual_out` and `rows` float32
    [B, S, hidden]. The head's output is `logits` float32 [B, S, vocabulary].

    Args:
        shape: sizes of the trunk.
        index: 0 .. shape.layers; the last one is the head.
        precision: `fp32` or `int4`, of the matrices.
        views: where the segment's tensors lie in its blob.
        location: the blob's file name; sessions are told its folder.

    Raises:
        InvalidInput: the index does not exist, or a tensor is missing or of the wrong shape.

    """
    if not 0 <= index <= shape.layers:
        raise InvalidInput(f"segment {index} does not exist: a trunk of {shape.layers} layers has 0 to {shape.layers}")
    graph = GraphBuilder(views, location, precision)
    if index == shape.layers:
        _head(graph, shape)
    else:
        _layer(graph, shape, first=index == 0)
    return graph.serialise(f"trunk_segment_{index}")


def _layer(graph: GraphBuilder, shape: TrunkShape, *, first: bool) -> None:
    width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    if first:
        residual, normed = _embedding(graph, shape)
    else:
        residual, normed = _add_and_norm(graph, shape, _residual_inputs(graph, shape), "attn_norm")
    attended = _attention(graph, shape, graph.matmul(normed, "qkv", shape.hidden, width))
    projected = graph.matmul(attended, "o", shape.heads * shape.head_dim, shape.hidden)
    shared_width = _shared_width(graph, shape)
    after = None if shared_width else "residual_out"
    residual, rows = _add_and_norm(graph, shape, (projected, residual), "ffn_norm", ("rows", after))
    if shared_width:
        graph.node("Add", (residual, _shared_experts(graph, shape, rows, shared_width)), out="residual_out")
    for name in ("residual_out", "rows"):
        graph.output(name, TensorProto.FLOAT, (*_RESIDUAL[:2], shape.hidden))


def _head(graph: GraphBuilder, shape: TrunkShape) -> None:
    vocabulary = graph.matrix_columns("lm_head", shape.hidden)
    _, normed = _add_and_norm(graph, shape, _residual_inputs(graph, shape), "final_norm")
    graph.matmul(normed, "lm_head", shape.hidden, vocabulary, out="logits")
    graph.output("logits", TensorProto.FLOAT, (*_RESIDUAL[:2], vocabulary))


def _embedding(graph: GraphBuilder, shape: TrunkShape) -> tuple[str, str]:
    graph.input("token_ids", TensorProto.INT64, _RESIDUAL[:2])
    residual = graph.node("Gather", (graph.tensor("embed", (None, shape.hidden)), "token_ids"), axis=0)
    scale = graph.tensor("attn_norm", (shape.hidden,))
    normed = graph.node("SimplifiedLayerNormalization", (residual, scale), axis=-1, epsilon=shape.norm_epsilon)
    return residual, normed


def _residual_inputs(graph: GraphBuilder, shape: TrunkShape) -> tuple[str, str]:
    for name in ("residual", "combined"):
        graph.input(name, TensorProto.FLOAT, (*_RESIDUAL[:2], shape.hidden))
    return "residual", "combined"


def _add_and_norm(
    graph: GraphBuilder,
    shape: TrunkShape,
    terms: tuple[str, str],
    norm: str,
    outs: tuple[str | None, str | None] = (None, None),
) -> tuple[str, str]:
    """(sum of the terms, its norm); `outs` names the norm and the sum."""
    normed, total = outs[0] or f"{norm}_out", outs[1] or f"{norm}_sum"
    scale = graph.tensor(norm, (shape.hidden,))
    graph.contrib(
        "SkipSimplifiedLayerNormalization", (*terms, scale), (normed, "", "", total), epsilon=shape.norm_epsilon
    )
    return total, normed


def _attention(graph: GraphBuilder, shape: TrunkShape, qkv: str) -> str:
    cache = ("batch", shape.kv_heads, "context", shape.head_dim)
    for name in ("past_key", "past_value"):
        graph.input(name, TensorProto.FLOAT, cache)
    graph.input("seqlens_k", TensorProto.INT32, ("batch",))
    graph.input("total_sequence_length", TensorProto.INT32, ())
    for name in ("present_key", "present_value"):
        graph.output(name, TensorProto.FLOAT, cache)
    tables = ("rope_cos", "rope_sin")
    for name in tables:
        graph.input(name, TensorProto.FLOAT, ("context", shape.head_dim // 2))
    graph.contrib(
        "GroupQueryAttention",
        (qkv, "", "", "past_key", "past_value", "seqlens_k", "total_sequence_length", *tables),
        ("attended", "present_key", "present_value"),
        num_heads=shape.heads,
        kv_num_heads=shape.kv_heads,
        do_rotary=1,
        rotary_interleaved=0,
    )
    return "attended"


def _shared_width(graph: GraphBuilder, shape: TrunkShape) -> int:
    if not graph.has_matrix("shared_gate_up"):
        return 0
    return graph.matrix_columns("shared_gate_up", shape.hidden) // 2


def _shared_experts(graph: GraphBuilder, shape: TrunkShape, rows: str, width: int) -> str:
    both = graph.matmul(rows, "shared_gate_up", shape.hidden, 2 * width)
    gate, up = graph.nodes("Split", (both,), ("shared_gate", "shared_up"), axis=-1, num_outputs=2)
    graph.contrib("QuickGelu", (gate,), ("shared_silu",), alpha=1.0)  # x * sigmoid(x): SiLU
    return graph.matmul(graph.node("Mul", ("shared_silu", up)), "shared_down", width, shape.hidden)
