"""Experts of gpt-oss in the packed form in which it is published."""

from __future__ import annotations

import numpy as np

from models.altered_checkpoints import Tensors

_BLOCK = 32


def pack_experts(tensors: Tensors) -> None:
    """Put random MXFP4 experts in place of those of a gpt-oss checkpoint, which are [experts, inner, rows].

    Codes are uint8 [experts, rows, inner / 32, 16], scales uint8 [experts, rows, inner / 32], of magnitudes that make
    every expert count.
    """
    random = np.random.default_rng(5)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inner, rows = tensors.pop(name).shape
        shape = (experts, rows, inner // _BLOCK)
        tensors[f"{name}_blocks"] = random.integers(0, 256, (*shape, _BLOCK // 2), dtype=np.uint8)
        tensors[f"{name}_scales"] = random.integers(122, 126, shape, dtype=np.uint8)
