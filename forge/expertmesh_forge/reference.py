"""The plain reference: a bundle run densely in numpy, to check what a mesh of workers answered.

Every expert is computed for every row and masked by the layer's threshold; the whole text goes through in one pass. It
shares no code with the gateway's gating, dispatch or execution; attention is that of the dense forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.bundle.manifest import Blob, Layer, Precision
from expertmesh_common.bundle.tensors import Array, read_tensors
from expertmesh_forge.dense_forward import Rope, attention, rms_norm, silu
from expertmesh_forge.dense_model import DenseConfig, DenseLayer, Floats
from expertmesh_forge.errors import BundleError
from expertmesh_forge.formats import decode_matrix

__all__ = ["Expectation", "ReferenceModel"]

Tensors = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the reference expects of a text.

    `logits` is float32 [T, vocab]. `router_margins` float32 [T] is, per row, the smallest |score - threshold| of any
    expert in any layer, relative to the largest |score| or |threshold| of that row and layer. `picks` bool
    [layers, T, experts] are the experts each row is sent to.
    """

    logits: Floats
    router_margins: Floats
    picks: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Router:
    weights: Floats
    bias: Floats
    threshold: np.float32


@dataclass(frozen=True, slots=True)
class _Block:
    """One layer: attention, shared neurons, router and every expert, matrices [out, in]."""

    trunk: DenseLayer
    router: _Router
    experts: tuple[tuple[Floats, Floats], ...]


class ReferenceModel:
    """Every tensor of a bundle at one precision, as float32 in memory."""

    def __init__(self, bundle: Bundle, precision: Precision = "fp32") -> None:
        trunk = bundle.manifest.trunk
        _require_supported(bundle, precision)
        segments = [_read(bundle, segment.graphs[precision].weights) for segment in trunk.segments]
        self.config = DenseConfig(
            layers=len(bundle.manifest.layers), hidden=trunk.hidden, ffn=0, heads=trunk.heads,
            kv_heads=trunk.kv_heads, head_dim=trunk.head_dim, vocab=trunk.vocabulary,
            context_tokens=trunk.context_tokens, rope_base=trunk.rope_base, norm_eps=trunk.norm_epsilon,
            rope=trunk.rope,
        )  # fmt: skip
        self._embedding: Floats = segments[0]["embed"].astype(np.float32)
        self._final_norm: Floats = segments[-1]["final_norm"].astype(np.float32)
        self._head = decode_matrix("lm_head", segments[-1])
        self._blocks = [
            _block(bundle, self.config, layer, segment, precision)
            for layer, segment in zip(bundle.manifest.layers, segments[:-1], strict=True)
        ]

    def expect(self, token_ids: list[int]) -> Expectation:
        """Run a text of T tokens in one pass."""
        config, size = self.config, len(token_ids)
        if not 0 < size <= config.context_tokens:
            raise BundleError(f"{size} tokens do not fit a context of {config.context_tokens}; check a shorter text")
        rope = Rope(config, size)
        states: Floats = self._embedding[np.array(token_ids)]
        margins = np.full(size, np.inf, np.float32)
        picks = []
        for block in self._blocks:
            states = states + attention(config, block.trunk, rope, states[None])[0]
            rows = rms_norm(states, block.trunk.ffn_norm, config.norm_eps)
            picked, margin = _route(block.router, rows)
            states = states + _feed_forward(block.trunk.gate, block.trunk.up, block.trunk.down, rows)
            for index, (gate_up, down) in enumerate(block.experts):
                gate, up = np.split(gate_up, 2)
                states = states + _feed_forward(gate, up, down, rows) * picked[:, index : index + 1]
            margins = np.minimum(margins, margin)
            picks.append(picked)
        logits: Floats = rms_norm(states, self._final_norm, config.norm_eps) @ self._head.T
        return Expectation(logits, margins, np.stack(picks))


def _route(router: _Router, rows: Floats) -> tuple[npt.NDArray[np.bool_], Floats]:
    scores = rows @ router.weights + router.bias
    scale = np.maximum(np.abs(scores).max(axis=1), np.abs(router.threshold))
    margin: Floats = np.abs(scores - router.threshold).min(axis=1) / scale
    picked: npt.NDArray[np.bool_] = scores >= router.threshold
    return picked, margin


def _feed_forward(gate: Floats, up: Floats, down: Floats, rows: Floats) -> Floats:
    output: Floats = (silu(rows @ gate.T) * (rows @ up.T)) @ down.T
    return output


def _require_supported(bundle: Bundle, precision: Precision) -> None:
    manifest = bundle.manifest
    if precision not in manifest.precisions:
        raise BundleError(
            f"{manifest.name} is not whole at {precision}; it has {', '.join(manifest.precisions) or 'no precision'}"
        )
    other = [layer.index for layer in manifest.layers if layer.gate is None or layer.gate.picker != "threshold"]
    if other:
        raise BundleError(
            f"layer {other[0]} of {manifest.name} has no threshold; the reference knows carved models only"
        )


def _block(bundle: Bundle, config: DenseConfig, layer: Layer, segment: Tensors, precision: Precision) -> _Block:
    assert layer.gate is not None, "checked when the model was opened"
    gate = _read(bundle, layer.gate.weights)
    threshold = np.float32(layer.gate.threshold if layer.gate.threshold is not None else -np.inf)
    experts = [_read(bundle, expert.blobs[precision]) for expert in layer.experts]
    return _Block(
        trunk=_trunk_layer(config, segment),
        router=_Router(gate["router"].astype(np.float32), gate["bias"].astype(np.float32), threshold),
        experts=tuple((decode_matrix("gate_up", expert), decode_matrix("down", expert)) for expert in experts),
    )


def _trunk_layer(config: DenseConfig, segment: Tensors) -> DenseLayer:
    query, kv = config.query_width, config.kv_width
    q, k, v = np.split(decode_matrix("qkv", segment), [query, query + kv])
    empty = np.zeros((0, config.hidden), np.float32)
    shared = {"shared_gate_up", "shared_gate_up_q"} & segment.keys()
    gate, up = np.split(decode_matrix("shared_gate_up", segment), 2) if shared else (empty, empty)
    return DenseLayer(
        attn_norm=segment["attn_norm"].astype(np.float32),
        q=q, k=k, v=v, o=decode_matrix("o", segment),
        ffn_norm=segment["ffn_norm"].astype(np.float32),
        gate=gate, up=up, down=decode_matrix("shared_down", segment) if shared else empty.T,
    )  # fmt: skip


def _read(bundle: Bundle, blob: Blob) -> Tensors:
    return read_tensors(bundle.path(blob))
