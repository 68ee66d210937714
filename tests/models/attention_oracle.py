"""What a trunk computes, in plain numpy float64 over whole sequences: no cache, no packing, a mask instead of a kernel.

It shares no code with the graphs. Tensors are named as the trunk's blobs name them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from expertmesh_common.bundle.parts import Rope
from expertmesh_common.graphs.attention import AttentionShape, LatentShape

Tensors = Mapping[str, np.ndarray]
EPSILON = 1e-5
ROUTED_SHARE = 0.5
"""What stands for routed experts: this times their rows."""


def trunk_logits(
    segments: Sequence[Tensors], shapes: Sequence[AttentionShape], rope: Rope, ids: list[int]
) -> np.ndarray:
    """Logits [tokens, vocabulary] of one sequence; `segments` are the layers' tensors and then the head's."""
    state = segments[0]["embed"][np.asarray(ids)].astype(np.float64)
    for tensors, shape in zip(segments[:-1], shapes, strict=True):
        state = state + attended(tensors, shape, rope, normed(tensors, "attn_norm", state))
        rows = normed(tensors, "ffn_norm", state)
        state = state + shared_experts(tensors, rows) + ROUTED_SHARE * rows
    head = segments[-1]
    return normed(head, "final_norm", state) @ head["lm_head"] + head.get("lm_head_bias", 0)


def attended(tensors: Tensors, shape: AttentionShape, rope: Rope, rows: np.ndarray) -> np.ndarray:
    """Attention of normed rows [tokens, hidden] after the output projection."""
    if shape.latent:
        query, key, value = _latent_heads(tensors, shape, shape.latent, rows)
    else:
        query, key, value = _packed_heads(tensors, shape, rows)
    if shape.rotary:
        query, key = turned(query, rope), turned(key, rope)
    mixed = _mixed(query, key, value, shape, tensors.get("sinks"))
    return mixed.reshape(len(rows), -1) @ tensors["o"] + tensors.get("o_bias", 0)


def normed(tensors: Tensors, name: str, value: np.ndarray) -> np.ndarray:
    bias = tensors.get(f"{name}_bias")
    if bias is not None:
        value = value - value.mean(-1, keepdims=True)
    scaled = value / np.sqrt((value**2).mean(-1, keepdims=True) + EPSILON) * tensors[name]
    return scaled if bias is None else scaled + bias


def shared_experts(tensors: Tensors, rows: np.ndarray) -> np.ndarray:
    if "shared_gate_up" not in tensors:
        return np.zeros_like(rows)
    gate, up = np.split(rows @ tensors["shared_gate_up"], 2, axis=-1)
    shared = (gate / (1 + np.exp(-gate)) * up) @ tensors["shared_down"]
    return shared / (1 + np.exp(-rows @ tensors["shared_gate"])) if "shared_gate" in tensors else shared


def turned(heads: np.ndarray, rope: Rope) -> np.ndarray:
    """Heads [tokens, heads, size] at positions 0, 1, 2, ...; values beyond the pairs stay as they are."""
    pairs = len(rope.inverse_frequencies)
    angles = np.outer(np.arange(len(heads)), rope.inverse_frequencies)[:, None]
    cos, sin = np.cos(angles) * rope.factor, np.sin(angles) * rope.factor
    first, second, rest = heads[..., :pairs], heads[..., pairs : 2 * pairs], heads[..., 2 * pairs :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def _packed_heads(tensors: Tensors, shape: AttentionShape, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    cuts = np.cumsum([shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim])
    query, key, value = np.split(rows @ tensors["qkv"] + tensors.get("qkv_bias", 0), cuts, axis=-1)
    heads = []
    for name, part in (("q_norm", query), ("k_norm", key)):
        whole = normed(tensors, f"{name}_whole", part) if f"{name}_whole" in tensors else part
        split = whole.reshape(len(rows), -1, shape.head_dim)
        heads.append(normed(tensors, name, split) if name in tensors else split)
    return *heads, value.reshape(len(rows), -1, shape.head_dim)


def _latent_heads(
    tensors: Tensors, shape: AttentionShape, latent: LatentShape, rows: np.ndarray
) -> tuple[np.ndarray, ...]:
    tokens, heads = len(rows), shape.heads
    if "q_a" in tensors:
        query = normed(tensors, "q_a_norm", rows @ tensors["q_a"]) @ tensors["q_b"]
    else:
        query = rows @ tensors["q"]
    compressed, shared = np.split(rows @ tensors["kv_a"], [latent.rank], axis=-1)
    expanded = normed(tensors, "kv_a_norm", compressed) @ tensors["kv_b"]
    own, value = np.split(expanded, [heads * latent.nope_dim], axis=-1)
    key = np.concatenate(
        [np.repeat(shared[:, None], heads, axis=1), own.reshape(tokens, heads, latent.nope_dim)], axis=-1
    )
    return query.reshape(tokens, heads, -1), key, value.reshape(tokens, heads, latent.value_dim)


def _mixed(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, shape: AttentionShape, sinks: np.ndarray | None
) -> np.ndarray:
    """Values [tokens, heads, size] mixed by the softmax of the scores of what each token sees."""
    tokens, heads, size = query.shape
    behind = np.arange(tokens)[:, None] - np.arange(tokens)
    seen = (behind >= 0) & (behind < (shape.window or tokens))
    mixed = np.empty((tokens, heads, value.shape[-1]))
    for head in range(heads):
        group = head * key.shape[1] // heads
        scores = query[:, head] @ key[:, group].T * (size**-0.5 if shape.scale is None else shape.scale)
        exponents = np.where(seen, np.exp(scores), 0)
        total = exponents.sum(1, keepdims=True) + (0 if sinks is None else np.exp(np.float64(sinks[head])))
        mixed[:, head] = exponents / total @ value[:, group]
    return mixed
