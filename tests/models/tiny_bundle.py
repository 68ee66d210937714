"""A tiny token MoE with random weights, on disk as a real bundle, and a plain numpy oracle of what it computes.

3 layers, hidden 64, 4 heads over 2 key-value heads, 4 routed experts of width 32 beside shared ones of width 64,
a byte-level tokenizer of 300 tokens, threshold gates. The oracle shares no code with the services.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from expertmesh_common.bundle.blobs import BlobStore, Bundle
from expertmesh_common.bundle.manifest import (
    Blob,
    Expert,
    ExpertBlob,
    Gate,
    Graph,
    Layer,
    Manifest,
    Segment,
    Tokenizer,
    Trunk,
    write_manifest,
)
from expertmesh_common.bundle.tensors import encode_tensors, read_tensors, tensor_views
from expertmesh_common.graphs.expert import ExpertShape, resident_bytes
from expertmesh_common.graphs.trunk import TrunkShape, segment_graph

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 3, 64, 4, 2, 16
EXPERTS, EXPERT_WIDTH, SHARED_WIDTH = 4, 32, 64
CONTEXT, VOCABULARY, EPSILON, ROPE_BASE = 512, 300, 1e-5, 10000.0
THRESHOLD = 0.2
EOS, IM_START, IM_END = 256, 257, 258
BLOCK = 32
PRECISIONS = ("fp32", "int4")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Tensors = dict[str, np.ndarray]
Past = tuple[np.ndarray, np.ndarray]
"""Keys and values float32 [key-value heads, tokens, head size] of one layer."""


def make_tiny_bundle(folder: Path, seed: int = 0, *, embedding: type[np.generic] = np.float32) -> Path:
    """Write the bundle into `folder` (made if missing); the same seed gives the same bytes. Returns the folder.

    The embedding has the type `embedding` at every precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    store = BlobStore(folder / "blobs")
    trunk = [_layer_tensors(random, first=i == 0) for i in range(LAYERS)] + [_head_tensors(random)]
    trunk[0]["embed"] = trunk[0]["embed"].astype(embedding)
    layers = tuple(_layer(store, random, i) for i in range(LAYERS))
    shape = TrunkShape(LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, EPSILON)
    segments = tuple(
        Segment(index=i, graphs={p: _graph(store, shape, i, p, tensors) for p in PRECISIONS})
        for i, tensors in enumerate(trunk)
    )
    manifest = Manifest(
        name="tiny",
        family="llama",
        source="random weights",
        licence="Apache-2.0",
        trunk=Trunk(
            hidden=HIDDEN,
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            vocabulary=VOCABULARY,
            context_tokens=CONTEXT,
            rope_base=ROPE_BASE,
            norm_epsilon=EPSILON,
            activation="swiglu",
            segments=segments,
        ),
        layers=layers,
        tokenizer=Tokenizer(
            vocabulary=store.put(tokenizer_json()),
            chat_template=store.put(CHAT_TEMPLATE.encode()),
            eos_ids=(EOS, IM_END),
        ),
    )
    write_manifest(manifest, folder)
    return folder


def tokenizer_json() -> bytes:
    """A byte-level BPE: 256 bytes, 3 special tokens, 41 merges."""
    from tokenizers import pre_tokenizers

    letters = "etaoinshr"
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pairs = [(a, b) for a in letters for b in letters][: VOCABULARY - 259]
    vocabulary |= {a + b: 259 + i for i, (a, b) in enumerate(pairs)}
    special = {"<|endoftext|>": EOS, "<|im_start|>": IM_START, "<|im_end|>": IM_END}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for text, i in special.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary | special, "merges": [list(pair) for pair in pairs]},
    }
    return json.dumps(document, ensure_ascii=False).encode()


class Dense:
    """The whole model over one sequence, every expert in place; int4 weights are dequantised."""

    def __init__(self, bundle: Bundle, precision: str = "fp32") -> None:
        manifest = bundle.manifest
        trunk = [_read(bundle, segment.graphs[precision].weights, precision) for segment in manifest.trunk.segments]
        self._blocks, self._head = trunk[:-1], trunk[-1]
        self._routed = [Routed(bundle, layer, precision) for layer in manifest.layers]
        self._past: list[Past | None] = [None] * len(self._blocks)

    def read_in(self, ids: list[int]) -> np.ndarray:
        """Logits float32 [tokens, vocabulary] of `ids`, which come after all that was read in before."""
        state = self._blocks[0]["embed"][np.asarray(ids)].astype(np.float32)
        for index, (tensors, routed) in enumerate(zip(self._blocks, self._routed, strict=True)):
            mixed, self._past[index] = _mixed(tensors, _norm(state, tensors["attn_norm"]), self._past[index])
            state = state + mixed
            rows = _norm(state, tensors["ffn_norm"])
            state = state + _swiglu(rows, tensors["shared_gate_up"], tensors["shared_down"])
            state = state + routed.add(rows)
        return _norm(state, self._head["final_norm"]) @ self._head["lm_head"]


class Routed:
    """The routed experts of one layer, in memory."""

    def __init__(self, bundle: Bundle, layer: Layer, precision: str) -> None:
        self._gate, self._threshold = read_tensors(bundle.path(layer.gate.weights)), layer.gate.threshold
        self._experts = {e.index: _read(bundle, e.blobs[precision], precision) for e in layer.experts}

    def add(self, rows: np.ndarray) -> np.ndarray:
        """What they add to `rows` float32 [T, hidden], each row through its own experts."""
        picked = rows @ self._gate["router"] + self._gate["bias"] >= self._threshold
        total = np.zeros_like(rows)
        for index, tensors in self._experts.items():
            mine = picked[:, index]
            total[mine] += _swiglu(rows[mine], tensors["gate_up"], tensors["down"])
        return total


def dense_logits(bundle: Bundle, ids: list[int], precision: str = "fp32") -> np.ndarray:
    """Logits float32 [tokens, vocabulary] of one whole sequence."""
    return Dense(bundle, precision).read_in(ids)


def routed_rows(bundle: Bundle, layer: Layer, rows: np.ndarray, precision: str = "fp32") -> np.ndarray:
    """What the routed experts of `layer` add to `rows` float32 [T, hidden], each row through its own experts."""
    return Routed(bundle, layer, precision).add(rows)


def greedy_ids(bundle: Bundle, prompt: list[int], count: int, precision: str = "fp32") -> list[int]:
    """`count` greedy tokens after `prompt`."""
    dense, ids = Dense(bundle, precision), list[int]()
    read = list(prompt)
    for _ in range(count):
        read = [int(dense.read_in(read)[-1].argmax())]
        ids += read
    return ids


def quantise(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W [k, n] -> packed uint8 [n, k/32, 16] and scales float32 [n, k/32], symmetric around 8."""
    blocks = matrix.T.reshape(matrix.shape[1], -1, BLOCK)
    scales = np.maximum(np.abs(blocks).max(axis=2), 1e-12).astype(np.float32) / 7
    codes = np.clip(np.rint(blocks / scales[..., None]) + 8, 0, 15).astype(np.uint8)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), scales


def dequantise(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The inverse of `quantise`, up to rounding."""
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scales.shape, BLOCK)
    return ((codes.astype(np.float32) - 8) * scales[..., None]).reshape(len(packed), -1).T


def _matrix(random: np.random.Generator, rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
    return (random.standard_normal((rows, columns)) * gain / np.sqrt(rows)).astype(np.float32)


def _layer_tensors(random: np.random.Generator, *, first: bool) -> Tensors:
    tensors = {
        "attn_norm": random.uniform(0.5, 1.5, HIDDEN).astype(np.float32),
        "qkv": _matrix(random, HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM, gain=1.5),
        "o": _matrix(random, HEADS * HEAD_DIM, HIDDEN),
        "ffn_norm": random.uniform(0.5, 1.5, HIDDEN).astype(np.float32),
        "shared_gate_up": _matrix(random, HIDDEN, 2 * SHARED_WIDTH),
        "shared_down": _matrix(random, SHARED_WIDTH, HIDDEN),
    }
    return {"embed": _matrix(random, VOCABULARY, HIDDEN, gain=np.sqrt(VOCABULARY)), **tensors} if first else tensors


def _head_tensors(random: np.random.Generator) -> Tensors:
    return {"final_norm": np.ones(HIDDEN, np.float32), "lm_head": _matrix(random, HIDDEN, VOCABULARY, gain=2.0)}


def _expert_tensors(random: np.random.Generator) -> Tensors:
    return {
        "gate_up": _matrix(random, HIDDEN, 2 * EXPERT_WIDTH, gain=2.0),
        "down": _matrix(random, EXPERT_WIDTH, HIDDEN, gain=2.0),
    }


def _stored(tensors: Mapping[str, np.ndarray], precision: str) -> Tensors:
    """As the blob of that precision holds them: at int4 every matrix but the look-up tables is packed."""
    if precision == "fp32":
        return dict(tensors)
    stored: Tensors = {}
    for name, value in tensors.items():
        if value.ndim == 2 and name != "embed":
            stored[f"{name}_q"], stored[f"{name}_s"] = quantise(value)
        else:
            stored[name] = value
    return stored


def _read(bundle: Bundle, blob: Blob, precision: str) -> Tensors:
    tensors = dict(read_tensors(bundle.path(blob)))
    if precision == "fp32":
        return tensors
    packed = [name[:-2] for name in tensors if name.endswith("_q")]
    return tensors | {name: dequantise(tensors[f"{name}_q"], tensors[f"{name}_s"]) for name in packed}


def _graph(store: BlobStore, shape: TrunkShape, index: int, precision: str, tensors: Tensors) -> Graph:
    data = encode_tensors(_stored(tensors, precision))
    weights = store.put(data)
    views = tensor_views(data, len(data), "trunk")
    return Graph(graph=store.put(segment_graph(shape, index, precision, views, weights.digest)), weights=weights)


def _layer(store: BlobStore, random: np.random.Generator, index: int) -> Layer:
    router = {"router": _matrix(random, HIDDEN, EXPERTS), "bias": np.zeros(EXPERTS, np.float32)}
    gate = Gate(
        scorer="linear",
        picker="threshold",
        threshold=THRESHOLD,
        min_k=0,
        max_k=EXPERTS,
        weights=store.put(encode_tensors(router)),
    )
    return Layer(
        index=index,
        kind="moe",
        gate=gate,
        shared_width=SHARED_WIDTH,
        total_width=SHARED_WIDTH + EXPERTS * EXPERT_WIDTH,
        experts=tuple(_expert(store, random, i) for i in range(EXPERTS)),
    )


def _expert(store: BlobStore, random: np.random.Generator, index: int) -> Expert:
    tensors = _expert_tensors(random)
    blobs = {p: _expert_blob(store, p, encode_tensors(_stored(tensors, p))) for p in PRECISIONS}
    return Expert(index=index, width=EXPERT_WIDTH, frequency=round(0.5 - 0.1 * index, 2), blobs=blobs)


def _expert_blob(store: BlobStore, precision: str, data: bytes) -> ExpertBlob:
    blob = store.put(data)
    resident = resident_bytes(ExpertShape(HIDDEN, EXPERT_WIDTH, precision))
    return ExpertBlob(digest=blob.digest, size_bytes=blob.size_bytes, resident_bytes=resident)


def _norm(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows**2).mean(-1, keepdims=True) + np.float32(EPSILON)) * weight


def _swiglu(rows: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
    gate, up = np.split(rows @ gate_up, 2, axis=-1)
    return (gate / (1 + np.exp(-gate)) * up) @ down


def _attention(tensors: Tensors, rows: np.ndarray) -> np.ndarray:
    return _mixed(tensors, rows, None)[0]


def _mixed(tensors: Tensors, rows: np.ndarray, past: Past | None) -> tuple[np.ndarray, Past]:
    """Attention of `rows` to the rows of `past` and to those of their own that are not later; and both as past."""
    tokens, before = len(rows), 0 if past is None else past[0].shape[1]
    heads = (rows @ tensors["qkv"]).reshape(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM).transpose(1, 0, 2)
    angles = np.outer(before + np.arange(tokens), ROPE_BASE ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    query, key = (_rotate(h, angles) for h in (heads[:HEADS], heads[HEADS : HEADS + KV_HEADS]))
    value = heads[HEADS + KV_HEADS :]
    if past is not None:
        key, value = (np.concatenate(both, axis=1) for both in zip(past, (key, value), strict=True))
    later = np.triu(np.full((tokens, before + tokens), -np.inf), before + 1)
    mixed = np.empty((HEADS, tokens, HEAD_DIM), np.float32)
    for head in range(HEADS):
        shared = head * KV_HEADS // HEADS
        scores = query[head] @ key[shared].T / np.sqrt(HEAD_DIM) + later
        weights = np.exp(scores - scores.max(1, keepdims=True))
        mixed[head] = weights / weights.sum(1, keepdims=True) @ value[shared]
    return mixed.transpose(1, 0, 2).reshape(tokens, -1) @ tensors["o"], (key, value)


def _rotate(heads: np.ndarray, angles: np.ndarray) -> np.ndarray:
    first, second = np.split(heads, 2, axis=-1)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
