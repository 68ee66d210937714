"""Small trunks of every attention kind, with random weights, as bundles that a trunk executor opens.

Two layers without routed experts; what experts would add is up to the test.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from expertmesh_common.bundle.blobs import BlobStore, Bundle
from expertmesh_common.bundle.manifest import Graph, Layer, Manifest, Segment, Tokenizer, Trunk, write_manifest
from expertmesh_common.bundle.parts import Rope
from expertmesh_common.bundle.tensors import encode_tensors, tensor_views
from expertmesh_common.graphs.trunk import AttentionShape, LatentShape, TrunkShape, segment_graph
from models.attention_oracle import EPSILON
from models.tiny_bundle import quantise, tokenizer_json

HIDDEN, VOCABULARY, CONTEXT, SHARED_WIDTH = 64, 300, 128, 32
FLOAT_MATRICES = ("embed", "shared_gate")
GROUPED = AttentionShape(heads=4, kv_heads=2, head_dim=16)
LATENT = AttentionShape(4, 4, 32, scale=0.3, latent=LatentShape(rank=32, nope_dim=16, rope_dim=16, value_dim=24))
WIDE_VALUES = replace(LATENT, latent=LatentShape(rank=32, nope_dim=16, rope_dim=16, value_dim=32))
ROPE = Rope(inverse_frequencies=tuple(float(f) for f in 100.0 ** (-np.arange(8) / 8)), factor=1.2)

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Kind:
    """Attention shapes of the two layers, and the tensors that layers and head have beyond the plain ones."""

    first: AttentionShape = GROUPED
    second: AttentionShape = GROUPED
    extras: tuple[str, ...] = ()

    @property
    def shapes(self) -> tuple[AttentionShape, AttentionShape]:
        return self.first, self.second


KINDS = {
    "plain": Kind(),
    "biases": Kind(extras=("qkv_bias", "o_bias", "lm_head_bias")),
    "norm of heads": Kind(extras=("q_norm", "k_norm")),
    "norm of rows": Kind(extras=("q_norm_whole", "k_norm_whole")),
    "sinks": Kind(extras=("sinks",)),
    "window": Kind(first=replace(GROUPED, window=5)),
    "sinks, windows and biases": Kind(replace(GROUPED, window=7), GROUPED, ("sinks", "qkv_bias", "o_bias")),
    "layer norm": Kind(extras=("attn_norm_bias", "ffn_norm_bias", "final_norm_bias", "o_bias")),
    "no positions": Kind(second=replace(GROUPED, rotary=False)),
    "part of a head turns": Kind(replace(GROUPED, head_dim=32), replace(GROUPED, head_dim=32)),
    "score scale": Kind(replace(GROUPED, scale=0.1), GROUPED),
    "shared experts": Kind(extras=("shared_gate_up", "shared_down")),
    "gated shared experts": Kind(extras=("shared_gate_up", "shared_down", "shared_gate")),
    "latent": Kind(LATENT, LATENT, ("q", "shared_gate_up", "shared_down")),
    "latent with compressed queries": Kind(LATENT, LATENT, ("q_a", "q_a_norm", "q_b")),
    "latent with values as wide as keys": Kind(WIDE_VALUES, WIDE_VALUES, ("q",)),
}


def random_segments(kind: Kind, seed: int = 3) -> list[Tensors]:
    """Tensors of the two layers and of the head."""
    random = np.random.default_rng(seed)
    layers = [_layer(random, kind, shape) for shape in kind.shapes]
    layers[0]["embed"] = random.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
    return [*layers, _head(random, kind)]


def write_bundle(folder: Path, kind: Kind, segments: list[Tensors]) -> Bundle:
    """The trunk at fp32 and int4; matrices of the latter are rounded."""
    store, first = BlobStore(folder / "blobs"), kind.first
    shape = TrunkShape(2, HIDDEN, first.heads, first.kv_heads, first.head_dim, EPSILON, kind.shapes)
    trunk = Trunk(
        hidden=HIDDEN, heads=first.heads, kv_heads=first.kv_heads, head_dim=first.head_dim, vocabulary=VOCABULARY,
        context_tokens=CONTEXT, rope_base=10000.0, rope=ROPE, norm_epsilon=EPSILON, activation="swiglu",
        segments=tuple(
            Segment(index=i, graphs={p: _graph(store, shape, i, p, tensors) for p in ("fp32", "int4")})
            for i, tensors in enumerate(segments)
        ),
    )  # fmt: skip
    layer = {"kind": "dense", "shared_width": SHARED_WIDTH, "total_width": SHARED_WIDTH}
    manifest = Manifest(
        name="kind", family="test", source="random weights", licence="Apache-2.0", trunk=trunk,
        layers=tuple(Layer(index=i, **layer) for i in range(2)),
        tokenizer=Tokenizer(vocabulary=store.put(tokenizer_json()), eos_ids=(0,)),
    )  # fmt: skip
    write_manifest(manifest, folder)
    return Bundle(folder)


def matrices(tensors: Tensors) -> list[str]:
    """Names of those that a precision may round."""
    return [name for name, value in tensors.items() if value.ndim == 2 and name not in FLOAT_MATRICES]


def _graph(store: BlobStore, shape: TrunkShape, index: int, precision: str, tensors: Tensors) -> Graph:
    stored = dict(tensors)
    for name in matrices(tensors) if precision == "int4" else ():
        stored[f"{name}_q"], stored[f"{name}_s"] = quantise(stored.pop(name))
    data = encode_tensors(stored)
    weights, views = store.put(data), tensor_views(data, len(data), "trunk")
    return Graph(graph=store.put(segment_graph(shape, index, precision, views, weights.digest)), weights=weights)


def _layer(random: np.random.Generator, kind: Kind, shape: AttentionShape) -> Tensors:
    sizes = _sizes(shape)
    always = ("kv_a", "kv_a_norm", "kv_b") if shape.latent else ("qkv",)
    names = [*always, "attn_norm", "ffn_norm", "o", *(name for name in kind.extras if name in sizes)]
    return {name: _random(random, name, sizes[name]) for name in names}


def _head(random: np.random.Generator, kind: Kind) -> Tensors:
    sizes = {"final_norm": (HIDDEN,), "final_norm_bias": (HIDDEN,), "lm_head_bias": (VOCABULARY,)}
    names = ["final_norm", *(name for name in kind.extras if name in sizes)]
    return {"lm_head": _random(random, "lm_head", (HIDDEN, VOCABULARY))} | {
        name: _random(random, name, sizes[name]) for name in names
    }


def _sizes(shape: AttentionShape) -> dict[str, tuple[int, ...]]:
    query, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    latent = shape.latent or LatentShape(32, 16, 16, 16)
    return {
        "qkv": (HIDDEN, query + 2 * keys), "qkv_bias": (query + 2 * keys,), "q_norm": (shape.head_dim,),
        "k_norm": (shape.head_dim,), "q_norm_whole": (query,), "k_norm_whole": (keys,), "sinks": (shape.heads,),
        "q": (HIDDEN, query), "q_a": (HIDDEN, 32), "q_a_norm": (32,), "q_b": (32, query),
        "kv_a": (HIDDEN, latent.rank + latent.rope_dim), "kv_a_norm": (latent.rank,),
        "kv_b": (latent.rank, shape.heads * (latent.nope_dim + latent.value_dim)),
        "o": (shape.output_width, HIDDEN), "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "o_bias": (HIDDEN,),
        "attn_norm_bias": (HIDDEN,), "ffn_norm_bias": (HIDDEN,), "shared_gate_up": (HIDDEN, 2 * SHARED_WIDTH),
        "shared_down": (SHARED_WIDTH, HIDDEN), "shared_gate": (HIDDEN, 1),
    }  # fmt: skip


def _random(random: np.random.Generator, name: str, size: tuple[int, ...]) -> np.ndarray:
    if len(size) == 2:
        return (random.standard_normal(size) * 1.5 / np.sqrt(size[0])).astype(np.float32)
    if name.endswith(("_norm", "_whole")):
        return random.uniform(0.5, 1.5, size).astype(np.float32)
    return random.standard_normal(size).astype(np.float32)
