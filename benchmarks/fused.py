"""The yardstick of one process: a bundle as ONE ONNX graph, run by a bare loop.

Every feed-forward block is one pair of dense matrix products over all neurons; the gate's decision multiplies the
neurons of experts that were not picked by zero. That is the fastest single graph of the same function that the runtime
offers without custom operators: no branches, the fewest and largest products, attention with a shared cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.tensors import encode_tensors, read_tensors, read_views
from expertmesh_common.graphs.building import GraphBuilder
from expertmesh_common.graphs.trunk import rope_tables

CONTEXT_TOKENS = 1024


@dataclass(frozen=True)
class Fused:
    """A session and the sizes that its loop needs."""

    session: ort.InferenceSession
    layers: int
    cache_shape: tuple[int, int, int]
    vocabulary: int


def build_fused(bundle: Bundle, precision: str, folder: Path, threads: int) -> Fused:
    """Write the graph's weights into `folder` (once) and open a session."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{bundle.manifest.name}-{precision}.safetensors"
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_bytes(encode_tensors(_weights(bundle, precision)))
        partial.replace(path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = ort.InferenceSession(_graph(bundle, precision, path), options, providers=["CPUExecutionProvider"])
    trunk = bundle.manifest.trunk
    cache_shape = (trunk.kv_heads, CONTEXT_TOKENS, trunk.head_dim)
    return Fused(session, len(bundle.manifest.layers), cache_shape, trunk.vocabulary)


def _weights(bundle: Bundle, precision: str) -> dict[str, np.ndarray]:
    manifest = bundle.manifest
    found: dict[str, np.ndarray] = {}
    for layer, segment in zip(manifest.layers, manifest.trunk.segments, strict=False):
        trunk = read_tensors(bundle.path(segment.graphs[precision].weights))
        experts = [read_tensors(bundle.path(e.blobs[precision])) for e in layer.experts]
        gate = read_tensors(bundle.path(layer.gate.weights))
        kept = {k: v for k, v in trunk.items() if not k.startswith("shared_")}
        found |= {f"l{layer.index}_{k}": v for k, v in kept.items()}
        found |= {f"l{layer.index}_{k}": v for k, v in _block(trunk, experts, precision).items()}
        found |= _gate(layer.index, gate)
        found[f"l{layer.index}_threshold"] = np.array([layer.gate.threshold], np.float32)
    head = read_tensors(bundle.path(manifest.trunk.segments[-1].graphs[precision].weights))
    found |= {f"head_{k}": v for k, v in head.items()}
    first = manifest.layers[0]
    owners = [len(first.experts)] * first.shared_width + [e.index for e in first.experts for _ in range(e.width)]
    cos, sin = rope_tables(manifest.trunk.rope_base, manifest.trunk.head_dim, CONTEXT_TOKENS)
    found |= {"rope_cos": cos, "rope_sin": sin}
    found["owners"] = np.eye(len(first.experts) + 1, dtype=np.float32)[:, owners]
    return found


def _gate(layer: int, gate: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The router with one more column, for the shared neurons, that every row passes."""
    router = np.pad(gate["router"], ((0, 0), (0, 1)))
    return {f"l{layer}_router": router, f"l{layer}_bias": np.append(gate["bias"], np.float32(1e9))}


def _block(trunk: dict, experts: list[dict], precision: str) -> dict[str, np.ndarray]:
    """Shared and routed experts as one gate_up and one down matrix."""
    parts = [
        {"gate_up": "shared_gate_up", "down": "shared_down"},
        *({"gate_up": "gate_up", "down": "down"},) * len(experts),
    ]
    sources = [trunk, *experts]
    if precision == "fp32":
        halves = [np.split(s[p["gate_up"]], 2, axis=1) for s, p in zip(sources, parts, strict=True)]
        both = np.concatenate([h[0] for h in halves] + [h[1] for h in halves], axis=1)
        down = np.concatenate([s[p["down"]] for s, p in zip(sources, parts, strict=True)], axis=0)
        return {"gate_up": np.ascontiguousarray(both), "down": np.ascontiguousarray(down)}
    block: dict[str, np.ndarray] = {}
    for suffix in ("_q", "_s"):
        halves = [np.split(s[p["gate_up"] + suffix], 2, axis=0) for s, p in zip(sources, parts, strict=True)]
        block["gate_up" + suffix] = np.concatenate([h[0] for h in halves] + [h[1] for h in halves], axis=0)
        block["down" + suffix] = np.concatenate(
            [s[p["down"] + suffix] for s, p in zip(sources, parts, strict=True)], axis=1
        )
    return {k: np.ascontiguousarray(v) for k, v in block.items()}


def _graph(bundle: Bundle, precision: str, path: Path) -> bytes:
    manifest = bundle.manifest
    graph = GraphBuilder(read_views(path), path.name, precision)
    graph.input("token_ids", TensorProto.INT64, ("batch", "steps"))
    graph.input("seqlens_k", TensorProto.INT32, ("batch",))
    graph.input("total_sequence_length", TensorProto.INT32, ())
    d = manifest.trunk.hidden
    residual = graph.node("Gather", (graph.tensor("l0_embed", (None, d)), "token_ids"), axis=0)
    routed = ""
    for layer in manifest.layers:
        residual, routed = _layer(graph, manifest.trunk, layer, residual, routed)
    _, normed = _skip_norm(graph, manifest.trunk, residual, routed, "head_final_norm")
    graph.matmul(normed, "head_lm_head", d, manifest.trunk.vocabulary, out="logits")
    graph.output("logits", TensorProto.FLOAT, ("batch", "steps", manifest.trunk.vocabulary))
    return graph.serialise("fused")


def _skip_norm(graph, trunk, left: str, right: str, norm: str) -> tuple[str, str]:
    scale = graph.tensor(norm, (trunk.hidden,))
    if not right:
        return left, graph.node("SimplifiedLayerNormalization", (left, scale), axis=-1, epsilon=trunk.norm_epsilon)
    total, normed = f"{norm}_sum", f"{norm}_out"
    graph.contrib(
        "SkipSimplifiedLayerNormalization", (left, right, scale), (normed, "", "", total), epsilon=trunk.norm_epsilon
    )
    return total, normed


def _layer(graph, trunk, layer, residual: str, routed: str) -> tuple[str, str]:
    n, d = f"l{layer.index}_", trunk.hidden
    residual, normed = _skip_norm(graph, trunk, residual, routed, n + "attn_norm")
    qkv = graph.matmul(normed, n + "qkv", d, (trunk.heads + 2 * trunk.kv_heads) * trunk.head_dim)
    cache = ("batch", trunk.kv_heads, "context", trunk.head_dim)
    for name in ("past_key", "past_value"):
        graph.input(f"{n}{name}", TensorProto.FLOAT, cache)
    for name in ("present_key", "present_value"):
        graph.output(f"{n}{name}", TensorProto.FLOAT, cache)
    tables = [graph.tensor(name, (None, trunk.head_dim // 2)) for name in ("rope_cos", "rope_sin")]
    graph.contrib(
        "GroupQueryAttention",
        (qkv, "", "", n + "past_key", n + "past_value", "seqlens_k", "total_sequence_length", *tables),
        (n + "attended", n + "present_key", n + "present_value"),
        num_heads=trunk.heads, kv_num_heads=trunk.kv_heads, do_rotary=1, rotary_interleaved=0,
    )  # fmt: skip
    projected = graph.matmul(n + "attended", n + "o", trunk.heads * trunk.head_dim, d)
    residual, rows = _skip_norm(graph, trunk, projected, residual, n + "ffn_norm")
    return residual, _feed_forward(graph, layer, rows, d)


def _feed_forward(graph, layer, rows: str, d: int) -> str:
    n, experts, width = f"l{layer.index}_", len(layer.experts) + 1, layer.total_width
    both = graph.matmul(rows, n + "gate_up", d, 2 * width)
    gate, up = graph.nodes("Split", (both,), (n + "gate", n + "up"), axis=-1, num_outputs=2)
    graph.contrib("QuickGelu", (gate,), (n + "silu",), alpha=1.0)
    active = graph.node("Mul", (n + "silu", up))
    product = graph.node("MatMul", (rows, graph.tensor(n + "router", (d, experts))))
    scores = graph.node("Add", (product, graph.tensor(n + "bias", (experts,))))
    picked = graph.node("GreaterOrEqual", (scores, graph.tensor(n + "threshold", (1,))))
    mask = graph.node("Cast", (picked,), to=TensorProto.FLOAT)
    neurons = graph.node("MatMul", (mask, graph.tensor("owners", (experts, width))))
    return graph.matmul(graph.node("Mul", (active, neurons)), n + "down", width, d)


class Loop:
    """Greedy decoding over a fused graph with bound, shared caches: as little Python as there can be."""

    def __init__(self, fused: Fused) -> None:
        self.fused = fused
        shape = (1, *fused.cache_shape)
        self.caches = {
            f"l{i}_{kv}": np.zeros(shape, np.float32) for i in range(fused.layers) for kv in ("key", "value")
        }
        self.tokens = 0
        self.token, self.seqlens, self.total = np.zeros((1, 1), np.int64), np.zeros(1, np.int32), np.zeros((), np.int32)
        self.decode = self._binding(self.token)

    def _binding(self, ids: np.ndarray):
        binding = self.fused.session.io_binding()
        self._bind(binding.bind_input, "token_ids", ids)
        self._bind(binding.bind_input, "seqlens_k", self.seqlens)
        self._bind(binding.bind_input, "total_sequence_length", self.total)
        for name, cache in self.caches.items():
            layer, kv = name.split("_")
            self._bind(binding.bind_input, f"{layer}_past_{kv}", cache)
            self._bind(binding.bind_output, f"{layer}_present_{kv}", cache)
        logits = np.zeros((*ids.shape, self.fused.vocabulary), np.float32)
        self._bind(binding.bind_output, "logits", logits)
        return binding, logits

    @staticmethod
    def _bind(bind, name: str, array: np.ndarray) -> None:
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def prefill(self, ids: list[int]) -> int:
        self.tokens = len(ids)
        array = np.array([ids], np.int64)
        self.seqlens[0], self.total[...] = self.tokens - 1, self.tokens
        binding, logits = self._binding(array)
        self.fused.session.run_with_iobinding(binding)
        return int(logits[0, -1].argmax())

    def step(self, token: int) -> int:
        binding, logits = self.decode
        self.token[0, 0] = token
        self.seqlens[0] = self.tokens
        self.tokens += 1
        self.total[...] = self.tokens
        self.fused.session.run_with_iobinding(binding)
        return int(logits[0, 0].argmax())
