"""Norms of trunk graphs: RMS norm, or LayerNorm where the blob also has `<name>_bias`."""

from __future__ import annotations

from expertmesh_common.graphs.building import GraphBuilder

__all__ = ["add_and_norm", "norm"]


def norm(graph: GraphBuilder, value: str, name: str, width: int, epsilon: float) -> str:
    """`value` [..., width] normed over its last axis and scaled by the tensor `name` [width]."""
    scale = graph.tensor(name, (width,))
    if graph.has_tensor(f"{name}_bias"):
        weights = (scale, graph.tensor(f"{name}_bias", (width,)))
        return graph.node("LayerNormalization", (value, *weights), axis=-1, epsilon=epsilon)
    return graph.node("SimplifiedLayerNormalization", (value, scale), axis=-1, epsilon=epsilon)


def add_and_norm(
    graph: GraphBuilder,
    terms: tuple[str, str],
    name: str,
    width: int,
    epsilon: float,
    *,
    bias: str | None = None,
    outs: tuple[str | None, str | None] = (None, None),
) -> tuple[str, str]:
    """(sum of the terms and of `bias` [width], its norm) in one operator; `outs` names the norm and the sum."""
    normed, total = outs[0] or f"{name}_out", outs[1] or f"{name}_sum"
    kind, weights = "SkipSimplifiedLayerNormalization", [graph.tensor(name, (width,))]
    if graph.has_tensor(f"{name}_bias"):
        kind = "SkipLayerNormalization"
        weights.append(graph.tensor(f"{name}_bias", (width,)))
    if bias is not None:
        weights.append(bias)
    graph.contrib(kind, (*terms, *weights), (normed, "", "", total), epsilon=epsilon)
    return total, normed
