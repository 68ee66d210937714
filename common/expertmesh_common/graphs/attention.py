"""Attention of trunk layers: packed projections, what some families do to queries and keys, and the one kernel.

All kinds end in GroupQueryAttention, which also writes the key-value cache and turns the first values of each head.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from expertmesh_common.errors import InvalidInput
from expertmesh_common.graphs.building import GraphBuilder
from expertmesh_common.graphs.norms import norm

__all__ = ["AttentionShape", "LatentShape", "attend", "check_attention", "grouped_attention"]

_HEAD_STEP, _TURNED_HEAD_STEP = 8, 16  # of the kernel, without and with rotary positions
_PAIR_STEP = 8


@dataclass(frozen=True, slots=True)
class LatentShape:
    """Keys and values that are made of one small vector per token (multi-head latent attention, DeepSeek)."""

    rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Attention of one layer. `kv_heads` and `head_dim` are those of the key-value cache.

    `rotary` False means no positions at all. `window` counts the tokens that a token sees, itself included; 0 is all
    of them. `scale` multiplies scores; None is 1 / sqrt(head_dim).
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotary: bool = True
    window: int = 0
    scale: float | None = None
    latent: LatentShape | None = None

    @property
    def output_width(self) -> int:
        """Columns of what goes into the output projection."""
        return self.heads * (self.latent.value_dim if self.latent else self.head_dim)


def check_attention(shape: AttentionShape) -> None:
    """Raise InvalidInput for sizes that contradict each other or that the attention kernel does not take."""
    step = _TURNED_HEAD_STEP if shape.rotary else _HEAD_STEP
    if shape.head_dim % step or shape.heads % shape.kv_heads:
        raise InvalidInput(
            f"attention of {shape.heads} heads over {shape.kv_heads} of size {shape.head_dim} is not possible:"
            f" the size must be a multiple of {step}, the heads one of the key-value heads"
        )
    latent = shape.latent
    if latent is None:
        return
    if shape.head_dim != latent.rope_dim + latent.nope_dim or shape.heads != shape.kv_heads:
        raise InvalidInput(
            f"latent attention of {shape.heads} heads needs as many key-value heads, of size"
            f" {latent.rope_dim} + {latent.nope_dim}; it has {shape.kv_heads} of {shape.head_dim}"
        )
    if latent.value_dim > shape.head_dim or (shape.rotary and latent.rope_dim % (2 * _PAIR_STEP)):
        raise InvalidInput(
            f"latent attention with values of {latent.value_dim} and rotary keys of {latent.rope_dim} is not possible:"
            f" values must fit heads of {shape.head_dim}, rotary keys be a multiple of {2 * _PAIR_STEP}"
        )


def grouped_attention(graph: GraphBuilder, shape: AttentionShape, rows: str, *, hidden: int, epsilon: float) -> str:
    """Rows [B, S, hidden] attended through `qkv`: [B, S, heads * head_dim]."""
    widths = [heads * shape.head_dim for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
    qkv = graph.matmul(rows, "qkv", hidden, sum(widths))
    if graph.has_tensor("qkv_bias"):
        qkv = graph.node("Add", (qkv, graph.tensor("qkv_bias", (sum(widths),))))
    norms = ("q_norm", "q_norm_whole", "k_norm", "k_norm_whole")
    if not any(graph.has_tensor(name) for name in norms):
        return attend(graph, shape, (qkv, "", ""))
    query, key, value = graph.nodes("Split", (qkv, graph.integers(*widths)), ("query", "key", "value"), axis=-1)
    query, key = (
        _norm_heads(graph, name, tensor, heads, shape.head_dim, epsilon=epsilon)
        for name, tensor, heads in (("q_norm", query, shape.heads), ("k_norm", key, shape.kv_heads))
    )
    return attend(graph, shape, (query, key, value))


def _norm_heads(graph: GraphBuilder, name: str, value: str, heads: int, head_dim: int, *, epsilon: float) -> str:
    """Norm of [B, S, heads * head_dim], over all of a row (`<name>_whole`) or over each head (`<name>`)."""
    if graph.has_tensor(f"{name}_whole"):
        value = norm(graph, value, f"{name}_whole", heads * head_dim, epsilon)
    if not graph.has_tensor(name):
        return value
    # The kernel has inputs for these weights, but on processors it refuses them.
    split = graph.node("Reshape", (value, graph.integers(0, 0, heads, head_dim)))
    normed = norm(graph, split, name, head_dim, epsilon)
    return graph.node("Reshape", (normed, graph.integers(0, 0, heads * head_dim)))


def attend(graph: GraphBuilder, shape: AttentionShape, projected: tuple[str, str, str]) -> str:
    """Attention over the cache and new rows, [B, S, heads * head_dim]; `projected` is (packed, "", "") or Q, K, V."""
    cache = ("batch", shape.kv_heads, "context", shape.head_dim)
    for name in ("past_key", "past_value"):
        graph.input(name, TensorProto.FLOAT, cache)
    graph.input("seqlens_k", TensorProto.INT32, ("batch",))
    graph.input("total_sequence_length", TensorProto.INT32, ())
    for name in ("present_key", "present_value"):
        graph.output(name, TensorProto.FLOAT, cache)
    inputs = [*projected, "past_key", "past_value", "seqlens_k", "total_sequence_length", *_tables(graph, shape)]
    if graph.has_tensor("sinks"):
        inputs += ["", "", graph.tensor("sinks", (shape.heads,))]
    graph.contrib(
        "GroupQueryAttention", inputs, ("attended", "present_key", "present_value"),
        num_heads=shape.heads, kv_num_heads=shape.kv_heads, do_rotary=int(shape.rotary), rotary_interleaved=0,
        **({"local_window_size": shape.window} if shape.window else {}),
        **({} if shape.scale is None else {"scale": float(shape.scale)}),
    )  # fmt: skip
    return "attended"


def _tables(graph: GraphBuilder, shape: AttentionShape) -> tuple[str, str]:
    if not shape.rotary:
        return "", ""
    pairs = shape.latent.rope_dim // 2 if shape.latent else "pairs"
    for name in ("rope_cos", "rope_sin"):
        graph.input(name, TensorProto.FLOAT, ("context", pairs))
    return "rope_cos", "rope_sin"
