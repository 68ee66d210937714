"""A Qwen3-MoE that is large for a test, with random weights, and a plain numpy oracle of what it answers.

8 layers of 48 experts of width 512 at hidden 512, four of them per token: 1.2 GB as float32, nearly all of it experts.
A weight is a function of its name, so neither writing nor the oracle ever holds more than one layer, and the oracle
shares neither files nor code with what it checks.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from models import tiny_bundle as tiny

LAYERS, EXPERTS, PICKED = 8, 48, 4
HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD_DIM = 512, 512, 8, 2, 64
CONTEXT, EPSILON, ROPE_BASE = 2048, 1e-6, 10000.0
EXPERT_BYTES = 4 * 3 * HIDDEN * WIDTH
LAYER_BYTES = EXPERTS * EXPERT_BYTES
"""The routed experts of a layer as float32."""

_CONFIG = {
    "model_type": "qwen3_moe", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": 4 * WIDTH,
    "moe_intermediate_size": WIDTH, "num_experts": EXPERTS, "num_experts_per_tok": PICKED, "norm_topk_prob": True,
    "vocab_size": tiny.VOCABULARY, "max_position_embeddings": CONTEXT, "rms_norm_eps": EPSILON,
    "rope_theta": ROPE_BASE, "tie_word_embeddings": False, "eos_token_id": tiny.EOS, "torch_dtype": "bfloat16",
}  # fmt: skip

Rows = np.ndarray


def write_large_checkpoint(folder: Path) -> Path:
    """Config, tokenizer, and bfloat16 weights in one file per layer; returns the folder, which must not exist."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    (folder / "tokenizer.json").write_bytes(tiny.tokenizer_json())
    index: dict[str, str] = {}
    for number in range(LAYERS + 1):
        shapes = _layer_shapes(number) if number < LAYERS else _end_shapes()
        file = f"model-{number:05}.safetensors"
        save_file({name: weight(name, shape) for name, shape in shapes.items()}, folder / file)
        index |= dict.fromkeys(shapes, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def weight(name: str, shape: tuple[int, ...]) -> Rows:
    """The bfloat16 weight of that name: norms near 1, matrices [out, in] that keep the size of what they multiply."""
    values = np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32)
    if len(shape) == 1:
        return (values + 0.5).astype(ml_dtypes.bfloat16)
    spread = np.float32(1.0 if name == _EMBEDDING else _gain(name) * (3 / shape[1]) ** 0.5)
    return ((2 * values - 1) * spread).astype(ml_dtypes.bfloat16)


def greedy_ids(prompt: list[int], count: int) -> tuple[list[int], float]:
    """`count` greedy tokens after `prompt`, and the smallest margin by which one of them won over the next best."""
    model = _Oracle()
    logits, ids, margin = model.logits(prompt), [], np.inf
    for _ in range(count):
        best = int(logits.argmax())
        margin = min(margin, float(logits[best] - np.delete(logits, best).max()))
        ids.append(best)
        logits = model.logits([best])
    return ids, margin


_EMBEDDING = "model.embed_tokens.weight"


def _gain(name: str) -> float:
    """Routers decide clearly, and experts move the answer."""
    return 3.0 if ".mlp." in name or name.startswith("lm_head") else 1.0


def _layer_shapes(number: int) -> dict[str, tuple[int, ...]]:
    at = f"model.layers.{number}"
    rows = {"q": HEADS * HEAD_DIM, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM}
    shapes: dict[str, tuple[int, ...]] = {
        f"{at}.self_attn.{n}_proj.weight": (count, HIDDEN) for n, count in rows.items()
    }
    shapes[f"{at}.self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
    shapes |= {f"{at}.self_attn.{name}_norm.weight": (HEAD_DIM,) for name in "qk"}
    shapes |= {f"{at}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    shapes[f"{at}.mlp.gate.weight"] = (EXPERTS, HIDDEN)
    for expert in range(EXPERTS):
        shapes |= {f"{at}.mlp.experts.{expert}.{n}_proj.weight": (WIDTH, HIDDEN) for n in ("gate", "up")}
        shapes[f"{at}.mlp.experts.{expert}.down_proj.weight"] = (HIDDEN, WIDTH)
    return shapes


def _end_shapes() -> dict[str, tuple[int, ...]]:
    table = (tiny.VOCABULARY, HIDDEN)
    return {_EMBEDDING: table, "model.norm.weight": (HIDDEN,), "lm_head.weight": table}


class _Oracle:
    """Keeps keys and values, so that a token costs its own experts only."""

    def __init__(self) -> None:
        self._tokens = 0
        self._keys = [np.empty((KV_HEADS, 0, HEAD_DIM), np.float32) for _ in range(LAYERS)]
        self._values = [np.empty((KV_HEADS, 0, HEAD_DIM), np.float32) for _ in range(LAYERS)]

    def logits(self, ids: list[int]) -> Rows:
        """float32 [vocabulary] after these further tokens."""
        state = _float(_EMBEDDING, _end_shapes())[np.asarray(ids)]
        for layer in range(LAYERS):
            shapes, at = _layer_shapes(layer), f"model.layers.{layer}"
            rows = _normed(state, _float(f"{at}.input_layernorm.weight", shapes))
            state = state + self._attention(layer, rows)
            rows = _normed(state, _float(f"{at}.post_attention_layernorm.weight", shapes))
            state = state + np.stack([_routed(row, f"{at}.mlp", shapes) for row in rows])
        self._tokens += len(ids)
        last = _normed(state[-1], _float("model.norm.weight", _end_shapes()))
        return _float("lm_head.weight", _end_shapes()) @ last

    def _attention(self, layer: int, rows: Rows) -> Rows:
        shapes, at = _layer_shapes(layer), f"model.layers.{layer}.self_attn"
        query, key, value = (_heads(rows @ _float(f"{at}.{name}_proj.weight", shapes).T) for name in "qkv")
        places = np.arange(self._tokens, self._tokens + len(rows))
        query = _turned(_normed(query, _float(f"{at}.q_norm.weight", shapes)), places)
        key = _turned(_normed(key, _float(f"{at}.k_norm.weight", shapes)), places)
        keys = self._keys[layer] = np.concatenate([self._keys[layer], key], axis=1)
        values = self._values[layer] = np.concatenate([self._values[layer], value], axis=1)
        hidden = np.arange(keys.shape[1])[None] > places[:, None]
        mixed = np.empty_like(query)
        for head in range(HEADS):
            shared = head * KV_HEADS // HEADS
            scores = np.where(hidden, -np.inf, query[head] @ keys[shared].T / HEAD_DIM**0.5)
            mixed[head] = _softmax(scores) @ values[shared]
        joined = mixed.transpose(1, 0, 2).reshape(len(rows), -1)
        return joined @ _float(f"{at}.o_proj.weight", shapes).T


def _routed(row: Rows, at: str, shapes: dict[str, tuple[int, ...]]) -> Rows:
    scores = _softmax(_float(f"{at}.gate.weight", shapes) @ row)
    picked = np.argsort(-scores)[:PICKED]
    total = np.zeros_like(row)
    for expert in picked:
        gate, up, down = (_float(f"{at}.experts.{expert}.{n}_proj.weight", shapes) for n in ("gate", "up", "down"))
        left = gate @ row
        total += scores[expert] / scores[picked].sum() * (down @ (left / (1 + np.exp(-left)) * (up @ row)))
    return total


def _float(name: str, shapes: dict[str, tuple[int, ...]]) -> Rows:
    return weight(name, shapes[name]).astype(np.float32)


def _heads(rows: Rows) -> Rows:
    return rows.reshape(len(rows), -1, HEAD_DIM).transpose(1, 0, 2)


def _normed(rows: Rows, scale: Rows) -> Rows:
    return rows / np.sqrt((rows**2).mean(-1, keepdims=True) + np.float32(EPSILON)) * scale


def _softmax(scores: Rows) -> Rows:
    parts = np.exp(scores - scores.max(-1, keepdims=True))
    return (parts / parts.sum(-1, keepdims=True)).astype(np.float32)


def _turned(heads: Rows, places: Rows) -> Rows:
    angles = np.outer(places, ROPE_BASE ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
