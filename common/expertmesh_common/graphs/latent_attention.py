"""Multi-head latent attention: keys and values of all heads come from one small vector per token.

The cache holds the keys and values of every head, so the kernel is the one of all other kinds. Keys are the rotary
part, which all heads share, and then the head's own part; values are padded with zeros up to the size of a key.
"""

from __future__ import annotations

from expertmesh_common.graphs.attention import AttentionShape, LatentShape, attend
from expertmesh_common.graphs.building import GraphBuilder
from expertmesh_common.graphs.norms import norm

__all__ = ["latent_attention"]


def latent_attention(
    graph: GraphBuilder, shape: AttentionShape, latent: LatentShape, rows: str, *, hidden: int, epsilon: float
) -> str:
    """Rows [B, S, hidden] attended through `q` or `q_a` and `q_b`, `kv_a`, `kv_b`: [B, S, heads * value_dim]."""
    query = _query(graph, shape, rows, hidden=hidden, epsilon=epsilon)
    key, value = _key_and_value(graph, shape, latent, rows, hidden=hidden, epsilon=epsilon)
    return _unpadded(graph, shape, latent, attend(graph, shape, (query, key, value)))


def _query(graph: GraphBuilder, shape: AttentionShape, rows: str, *, hidden: int, epsilon: float) -> str:
    width = shape.heads * shape.head_dim
    if not graph.has_matrix("q_a"):
        return graph.matmul(rows, "q", hidden, width)
    rank = graph.matrix_columns("q_a", hidden)
    compressed = norm(graph, graph.matmul(rows, "q_a", hidden, rank), "q_a_norm", rank, epsilon)
    return graph.matmul(compressed, "q_b", rank, width)


def _key_and_value(
    graph: GraphBuilder, shape: AttentionShape, latent: LatentShape, rows: str, *, hidden: int, epsilon: float
) -> tuple[str, str]:
    """([B, S, heads * head_dim], the same): what the cache takes."""
    heads, sizes = shape.heads, (latent.rank, latent.rope_dim)
    both = graph.matmul(rows, "kv_a", hidden, sum(sizes))
    compressed, turned = graph.nodes("Split", (both, graph.integers(*sizes)), ("latent", "shared_key"), axis=-1)
    compressed = norm(graph, compressed, "kv_a_norm", latent.rank, epsilon)
    widths = (heads * latent.nope_dim, heads * latent.value_dim)
    expanded = graph.matmul(compressed, "kv_b", latent.rank, sum(widths))
    own, value = graph.nodes("Split", (expanded, graph.integers(*widths)), ("own_key", "own_value"), axis=-1)
    shared = graph.node("Reshape", (turned, graph.integers(0, 0, 1, latent.rope_dim)))
    shared = graph.node("Expand", (shared, graph.integers(1, 1, heads, 1)))
    key = graph.node("Concat", (shared, _by_head(graph, own, heads, latent.nope_dim)), axis=-1)
    padded = _padded(graph, _by_head(graph, value, heads, latent.value_dim), shape.head_dim - latent.value_dim)
    return _joined(graph, key, shape), _joined(graph, padded, shape)


def _by_head(graph: GraphBuilder, value: str, heads: int, size: int) -> str:
    return graph.node("Reshape", (value, graph.integers(0, 0, heads, size)))


def _joined(graph: GraphBuilder, value: str, shape: AttentionShape) -> str:
    return graph.node("Reshape", (value, graph.integers(0, 0, shape.heads * shape.head_dim)))


def _padded(graph: GraphBuilder, value: str, missing: int) -> str:
    return graph.node("Pad", (value, graph.integers(*[0] * 7, missing))) if missing else value


def _unpadded(graph: GraphBuilder, shape: AttentionShape, latent: LatentShape, attended: str) -> str:
    if latent.value_dim == shape.head_dim:
        return attended
    heads = _by_head(graph, attended, shape.heads, shape.head_dim)
    start, end, axis = (graph.integers(n) for n in (0, latent.value_dim, -1))
    kept = graph.node("Slice", (heads, start, end, axis))
    return graph.node("Reshape", (kept, graph.integers(0, 0, shape.output_width)))
