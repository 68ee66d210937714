"""The model that every engine is given, as numbers: a Qwen3-MoE of 352 M parameters, of which 76 M work on a token."""

from __future__ import annotations

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 16, 768, 12, 4, 64
EXPERTS, TOP_K, WIDTH, VOCABULARY = 16, 2, 512, 16384
CONTEXT_TOKENS = 4096

_ATTENTION = 2 * HIDDEN * (HEADS + KV_HEADS) * HEAD_DIM
_EXPERT = 3 * HIDDEN * WIDTH
_ROUTER = HIDDEN * EXPERTS
_HEAD = HIDDEN * VOCABULARY

BITS = {"fp32": 32.0, "int4": 4.25, "Q4_0": 4.5, "Q8_0": 8.5}
"""Per weight, its share of a scale included: blocks of 128 with a 32-bit scale, or of 32 with a 16-bit one."""


def experts_touched(rows: int) -> float:
    """Of a layer, by `rows` tokens whose experts are drawn evenly: the mean."""
    return EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** rows)


def bytes_read(weights: str, rows: int) -> float:
    """Weights that one step over `rows` tokens must read. Routers are float32 in every engine."""
    experts = LAYERS * experts_touched(rows) * _EXPERT
    dense = LAYERS * _ATTENTION + _HEAD
    return (experts + dense) * BITS[weights] / 8 + LAYERS * _ROUTER * 4


def multiplications(rows: int, heads: int) -> float:
    """Of weights with activations in one step over `rows` tokens, of which `heads` need logits."""
    return rows * LAYERS * (_ATTENTION + _ROUTER + TOP_K * _EXPERT) + heads * _HEAD
