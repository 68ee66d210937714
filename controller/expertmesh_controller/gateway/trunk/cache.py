"""The key-value pool: one block of address space; memory is taken page by page as sequences grow."""

from __future__ import annotations

import mmap

import numpy as np

from expertmesh_controller.gateway.trunk.executor import Floats

__all__ = ["KeyValuePool"]


class KeyValuePool:
    """Keys and values float32 [layers, 2, slots + 1, kv_heads, context, head_dim]; the last slot is spare.

    The first B slots of a layer are one contiguous block, which is what a decode batch binds.
    """

    def __init__(self, layers: int, slots: int, kv_heads: int, context_tokens: int, head_dim: int) -> None:
        shape = (layers, 2, slots + 1, kv_heads, context_tokens, head_dim)
        block = mmap.mmap(-1, int(np.prod(shape, dtype=np.int64)) * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would take a short sequence's memory 2 MiB at a time
            block.madvise(mmap.MADV_NOHUGEPAGE)
        self._pool: Floats = np.frombuffer(block, np.float32).reshape(shape)

    def slots(self, layer: int, first: int, count: int) -> tuple[Floats, Floats]:
        """(keys, values) of `count` slots from `first` on, float32 [count, kv_heads, context, head_dim] views."""
        return self._pool[layer, 0, first : first + count], self._pool[layer, 1, first : first + count]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` positions of a slot to another, in every layer."""
        self._pool[:, :, target, :, :tokens] = self._pool[:, :, source, :, :tokens]
