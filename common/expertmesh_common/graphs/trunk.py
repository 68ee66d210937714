"""Trunk segments of a token MoE as ONNX graphs: what runs between two MoE layers, in as few operators as there are.

Segment i < layers adds the routed output of layer i - 1, attends, adds the shared experts of layer i and hands out the
normed rows for that layer's routed experts; segment `layers` is the head. Weights stay outside, in the segment's
safetensors blob; the graph is a few hundred bytes of pointers into it.

What a segment computes is told by the tensors of its blob. With hidden d, heads H, key-value heads G, head size e,
shared width s (a dense layer's block counts as shared experts):

    every layer      attn_norm [d], o [attended, d], ffn_norm [d]
    if s > 0         shared_gate_up [d, 2s] (gate columns first), shared_down [s, d]
    segment 0 also   embed [vocabulary, d], float32, fp16 or bf16 whatever the precision
    the head         final_norm [d], lm_head [d, vocabulary]

Attention without a latent, attended = H*e:

    always           qkv [d, (H+2G)e]: queries, keys, values
    norm of heads    q_norm [e], k_norm [e]: RMS norm of each head before it turns
    norm of rows     q_norm_whole [H*e], k_norm_whole [G*e]: RMS norm before rows are split into heads

Attention with a latent of rank r, shared rotary size p, own size n, value size v; e = p + n, G = H, attended = H*v:

    queries          q [d, H*e], or q_a [d, any], q_a_norm [any], q_b [any, H*e]; of each head the rotary part first
    keys, values     kv_a [d, r+p]: latent, then rotary key; kv_a_norm [r]; kv_b [r, H*n + H*v]: keys, then values

Extras of any of them:

    biases           qkv_bias, o_bias [d], lm_head_bias [vocabulary], as wide as the columns of their matrices
    LayerNorm        attn_norm_bias, ffn_norm_bias, final_norm_bias [d]: the norm subtracts the mean, and adds this
    sinks            sinks [H]: a score per head that takes part in the softmax and adds nothing
    gated sharing    shared_gate [d, 1]: shared experts times sigmoid(rows @ shared_gate)

All others are float32, but matrices other than `shared_gate` are stored as the precision has them: at int4 one of
[k, n] is `<name>_q` uint8 [n, k/32, 16] and `<name>_s` float32 [n, k/32]. Of `embed` the rows that a call asks for
become float32, never the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import TensorProto

from expertmesh_common.bundle.manifest import Precision
from expertmesh_common.bundle.tensors import TensorView
from expertmesh_common.errors import InvalidInput
from expertmesh_common.graphs.attention import AttentionShape, LatentShape, check_attention, grouped_attention
from expertmesh_common.graphs.building import GraphBuilder
from expertmesh_common.graphs.latent_attention import latent_attention
from expertmesh_common.graphs.norms import add_and_norm, norm
from expertmesh_common.graphs.rope import rope_tables, rope_tables_of

# Shapes and tables belong to a segment's contract, so they can be had from here.
__all__ = ["AttentionShape", "LatentShape", "TrunkShape", "rope_tables", "rope_tables_of", "segment_graph"]

_TOKENS = ("batch", "steps")


@dataclass(frozen=True, slots=True)
class TrunkShape:
    """Sizes of the trunk. Shared widths and the vocabulary are read from the tensors themselves.

    `kv_heads` and `head_dim` are those of the key-value cache, which all layers share. `attention` has one entry per
    layer; if it is empty, every layer is as the plain fields say. The norms inside latent attention have
    `latent_norm_epsilon`, or `norm_epsilon` without it.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_epsilon: float
    attention: tuple[AttentionShape, ...] = ()
    latent_norm_epsilon: float | None = None

    def attention_of(self, layer: int) -> AttentionShape:
        """Attention of a layer.

        Raises:
            InvalidInput: there are fewer or more entries than layers, or one that the cache or the kernel does not fit.

        """
        if not self.attention:
            return AttentionShape(self.heads, self.kv_heads, self.head_dim)
        if len(self.attention) != self.layers:
            raise InvalidInput(f"a trunk of {self.layers} layers has attention shapes of {len(self.attention)}")
        own = self.attention[layer]
        if (own.kv_heads, own.head_dim) != (self.kv_heads, self.head_dim):
            raise InvalidInput(
                f"layer {layer} has {own.kv_heads} key-value heads of {own.head_dim}, the cache"
                f" {self.kv_heads} of {self.head_dim}: all layers of a trunk must have the same"
            )
        check_attention(own)
        return own


def segment_graph(
    shape: TrunkShape, index: int, precision: Precision, views: Mapping[str, TensorView], location: str
) -> bytes:
    """The ONNX graph of segment `index`, serialised.

    Inputs are `token_ids` int64 [B, S] for segment 0, else `residual` and `combined` float32 [B, S, hidden]. Layer
    segments also take `past_key`, `past_value` float32 [B, kv_heads, context, head_dim] (the same buffers as the
    outputs `present_key`, `present_value`), `seqlens_k` int32 [B] (tokens in the cache after this call, minus one),
    `total_sequence_length` int32 [] (the largest of them, plus one) and, where heads turn, the tables of
    `rope_tables_of` as inputs `rope_cos`, `rope_sin`, so that all segments share one copy; their outputs are
    `residual_out` and `rows` float32 [B, S, hidden]. The head's output is `logits` float32 [B, S, vocabulary].

    Args:
        shape: sizes of the trunk.
        index: 0 .. shape.layers; the last one is the head.
        precision: of the matrices.
        views: where the segment's tensors lie in its blob.
        location: the blob's file name; sessions are told its folder.

    Raises:
        InvalidInput: the index does not exist, a tensor is missing or of the wrong shape, or sizes do not fit.

    """
    if not 0 <= index <= shape.layers:
        raise InvalidInput(f"segment {index} does not exist: a trunk of {shape.layers} layers has 0 to {shape.layers}")
    graph = GraphBuilder(views, location, precision)
    if index == shape.layers:
        _head(graph, shape)
    else:
        _layer(graph, shape, shape.attention_of(index), first=index == 0)
    return graph.serialise(f"trunk_segment_{index}")


def _layer(graph: GraphBuilder, shape: TrunkShape, attention: AttentionShape, *, first: bool) -> None:
    hidden, epsilon = shape.hidden, shape.norm_epsilon
    if first:
        residual, normed = _embedding(graph, shape)
    else:
        residual, normed = add_and_norm(graph, _residual_inputs(graph, hidden), "attn_norm", hidden, epsilon)
    projected = graph.matmul(_attention(graph, shape, attention, normed), "o", attention.output_width, hidden)
    shared_width = _shared_width(graph, hidden)
    residual, rows = add_and_norm(
        graph, (projected, residual), "ffn_norm", hidden, epsilon,
        bias=graph.tensor("o_bias", (hidden,)) if graph.has_tensor("o_bias") else None,
        outs=("rows", None if shared_width else "residual_out"),
    )  # fmt: skip
    if shared_width:
        graph.node("Add", (residual, _shared_experts(graph, hidden, rows, shared_width)), out="residual_out")
    for name in ("residual_out", "rows"):
        graph.output(name, TensorProto.FLOAT, (*_TOKENS, hidden))


def _head(graph: GraphBuilder, shape: TrunkShape) -> None:
    hidden, vocabulary = shape.hidden, graph.matrix_columns("lm_head", shape.hidden)
    _, normed = add_and_norm(graph, _residual_inputs(graph, hidden), "final_norm", hidden, shape.norm_epsilon)
    if graph.has_tensor("lm_head_bias"):
        plain = graph.matmul(normed, "lm_head", hidden, vocabulary)
        graph.node("Add", (plain, graph.tensor("lm_head_bias", (vocabulary,))), out="logits")
    else:
        graph.matmul(normed, "lm_head", hidden, vocabulary, out="logits")
    graph.output("logits", TensorProto.FLOAT, (*_TOKENS, vocabulary))


def _embedding(graph: GraphBuilder, shape: TrunkShape) -> tuple[str, str]:
    graph.input("token_ids", TensorProto.INT64, _TOKENS)
    residual = graph.rows_of("embed", shape.hidden, "token_ids")
    return residual, norm(graph, residual, "attn_norm", shape.hidden, shape.norm_epsilon)


def _residual_inputs(graph: GraphBuilder, hidden: int) -> tuple[str, str]:
    for name in ("residual", "combined"):
        graph.input(name, TensorProto.FLOAT, (*_TOKENS, hidden))
    return "residual", "combined"


def _attention(graph: GraphBuilder, shape: TrunkShape, attention: AttentionShape, rows: str) -> str:
    hidden, epsilon = shape.hidden, shape.norm_epsilon
    if attention.latent is None:
        return grouped_attention(graph, attention, rows, hidden=hidden, epsilon=epsilon)
    epsilon = epsilon if shape.latent_norm_epsilon is None else shape.latent_norm_epsilon
    return latent_attention(graph, attention, attention.latent, rows, hidden=hidden, epsilon=epsilon)


def _shared_width(graph: GraphBuilder, hidden: int) -> int:
    if not graph.has_matrix("shared_gate_up"):
        return 0
    return graph.matrix_columns("shared_gate_up", hidden) // 2


def _shared_experts(graph: GraphBuilder, hidden: int, rows: str, width: int) -> str:
    both = graph.matmul(rows, "shared_gate_up", hidden, 2 * width)
    gate, up = graph.nodes("Split", (both,), ("gate_columns", "up_columns"), axis=-1, num_outputs=2)
    graph.contrib("QuickGelu", (gate,), ("shared_silu",), alpha=1.0)  # x * sigmoid(x): SiLU
    shared = graph.matmul(graph.node("Mul", ("shared_silu", up)), "shared_down", width, hidden)
    if not graph.has_tensor("shared_gate"):
        return shared
    score = graph.node("MatMul", (rows, graph.tensor("shared_gate", (hidden, 1))))
    return graph.node("Mul", (shared, graph.node("Sigmoid", (score,))))
