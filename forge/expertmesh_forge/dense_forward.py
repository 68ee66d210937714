"""The dense decoder in numpy: float32, whole documents at once, used by calibration.

Token batches are rectangles [documents, tokens]; causal attention makes padding at the end of a
row harmless to what stands before it, so callers mask the padding where they count.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from expertmesh_forge.dense_model import DenseConfig, DenseLayer, DenseModel, Floats
from expertmesh_forge.parallel import over_slices

__all__ = [
    "Rope",
    "attention",
    "dense_states",
    "dense_step",
    "embed",
    "ffn",
    "hidden_neurons",
    "logits",
    "rms_norm",
    "silu",
]

_ROWS_PER_CHUNK = 512
_QUERIES_PER_BLOCK = 128


class Rope:
    """Rotation tables for positions 0 .. tokens - 1, float32 [tokens, head_dim]."""

    def __init__(self, config: DenseConfig, tokens: int) -> None:
        half = np.outer(np.arange(tokens, dtype=np.float64), _inverse_frequencies(config))
        angles = np.concatenate([half, half], axis=1)
        factor = 1.0 if config.rope is None else config.rope.factor
        self.cos: Floats = (factor * np.cos(angles)).astype(np.float32)
        self.sin: Floats = (factor * np.sin(angles)).astype(np.float32)

    def rotate(self, heads: Floats) -> Floats:
        """Rotate [tokens, heads, head_dim] by position."""
        tokens, _, head_dim = heads.shape
        first, second = heads[..., : head_dim // 2], heads[..., head_dim // 2 :]
        turned: Floats = np.concatenate([-second, first], axis=-1, dtype=np.float32)
        rotated: Floats = heads * self.cos[:tokens, None] + turned * self.sin[:tokens, None]
        return rotated


def rms_norm(rows: Floats, weight: Floats, eps: float) -> Floats:
    """Root-mean-square norm over the last axis."""
    mean_square = np.mean(np.square(rows), axis=-1, keepdims=True)
    normed: Floats = rows / np.sqrt(mean_square + np.float32(eps)) * weight
    return normed


def silu(values: Floats) -> Floats:
    """SiLU, x * sigmoid(x), computed without overflow."""
    half = values * np.float32(0.5)
    activated: Floats = half * np.tanh(half) + half
    return activated


def hidden_neurons(layer: DenseLayer, rows: Floats) -> Floats:
    """SwiGLU activations before the down projection: [rows, hidden] -> [rows, ffn]."""
    neurons = np.empty((len(rows), len(layer.gate)), np.float32)

    def fill(part: slice) -> None:
        np.multiply(silu(rows[part] @ layer.gate.T), rows[part] @ layer.up.T, out=neurons[part])

    # In chunks that stay in cache: the activation reads and writes its input several times.
    over_slices(fill, len(rows), _ROWS_PER_CHUNK)
    return neurons


def ffn(layer: DenseLayer, rows: Floats) -> Floats:
    """The dense feed-forward block on normalised rows: [rows, hidden] -> the same shape."""
    output = np.empty_like(rows)

    def fill(part: slice) -> None:
        neurons = silu(rows[part] @ layer.gate.T) * (rows[part] @ layer.up.T)
        np.matmul(neurons, layer.down.T, out=output[part])

    over_slices(fill, len(rows), _ROWS_PER_CHUNK)
    return output


def attention(config: DenseConfig, layer: DenseLayer, rope: Rope, states: Floats) -> Floats:
    """Causal self-attention with its norm, without the residual: [documents, tokens, hidden]."""
    documents, tokens, hidden = states.shape
    rows = rms_norm(states, layer.attn_norm, config.norm_eps).reshape(-1, hidden)
    q = (rows @ layer.q.T).reshape(documents, tokens, config.heads, config.head_dim)
    k = (rows @ layer.k.T).reshape(documents, tokens, config.kv_heads, config.head_dim)
    v = (rows @ layer.v.T).reshape(documents, tokens, config.kv_heads, config.head_dim)
    mixed = np.empty((documents, tokens, config.query_width), np.float32)

    def fill(part: slice) -> None:
        for index in range(part.start, part.stop):
            mixed[index] = _attend(config, rope.rotate(q[index]), rope.rotate(k[index]), v[index])

    over_slices(fill, documents, 1)
    output: Floats = (mixed.reshape(-1, config.query_width) @ layer.o.T).reshape(states.shape)
    return output


def embed(model: DenseModel, tokens: npt.NDArray[np.int64]) -> Floats:
    """Token ids of any shape -> float32 [..., hidden]."""
    states: Floats = model.embedding[tokens]
    return states


def dense_states(model: DenseModel, tokens: npt.NDArray[np.int64]) -> Floats:
    """The dense model's states before the final norm: [documents, tokens] -> float32 [documents, tokens, hidden]."""
    config = model.config
    rope = Rope(config, tokens.shape[1])
    states = embed(model, tokens)
    for layer in model.layers:
        states = dense_step(config, layer, rope, states)
    return states


def dense_step(config: DenseConfig, layer: DenseLayer, rope: Rope, states: Floats) -> Floats:
    """One whole dense layer: states [documents, tokens, hidden] -> the next states."""
    attended: Floats = states + attention(config, layer, rope, states)
    rows = rms_norm(attended, layer.ffn_norm, config.norm_eps).reshape(-1, config.hidden)
    attended += ffn(layer, rows).reshape(states.shape)
    return attended


def logits(model: DenseModel, states: Floats) -> Floats:
    """States [.., hidden] -> float32 [.., vocab]."""
    scores: Floats = rms_norm(states, model.final_norm, model.config.norm_eps) @ model.head.T
    return scores


def _inverse_frequencies(config: DenseConfig) -> npt.NDArray[np.float64]:
    """Radians per position of every pair of values that turns, [head_dim / 2]."""
    if config.rope is not None:
        return np.asarray(config.rope.inverse_frequencies, np.float64)
    powers = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies: npt.NDArray[np.float64] = config.rope_base**-powers
    return frequencies


def _attend(config: DenseConfig, q: Floats, k: Floats, v: Floats) -> Floats:
    """One document: q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim]."""
    tokens = len(q)
    group = config.heads // config.kv_heads
    keys, values = np.ascontiguousarray(k.transpose(1, 2, 0)), np.ascontiguousarray(v.transpose(1, 0, 2))
    queries = np.ascontiguousarray(q.transpose(1, 0, 2)) * np.float32(config.head_dim**-0.5)
    mixed = np.empty((tokens, config.heads, config.head_dim), np.float32)
    # Blocks of queries keep the scores in cache, and no block looks at keys after its end.
    for start in range(0, tokens, _QUERIES_PER_BLOCK):
        end = min(start + _QUERIES_PER_BLOCK, tokens)
        future = np.triu(np.full((end - start, end - start), -np.inf, np.float32), k=1)
        for head in range(config.heads):
            scores = queries[head, start:end] @ keys[head // group, :, :end]
            scores[:, start:] += future
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            weights_sum = scores.sum(axis=1, keepdims=True)
            mixed[start:end, head] = (scores @ values[head // group, :end]) / weights_sum
    return mixed.reshape(tokens, config.query_width)
