"""Heads of frames: everything before the tensors' values, checked once per distinct head.

Frames of one shape recur on every layer and token and differ in `deadline_ms` and `seq` only, so a head that passed
its checks is recognised by its other bytes.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np

from expertmesh_common.channel.layout import (
    DESCRIPTOR,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    PAIR_BYTES,
    VERSION,
    Array,
    Described,
    describe_tensors,
    remember,
)
from expertmesh_common.errors import CorruptData

REQUEST: Final = 1
REPLY: Final = 2
_DEADLINE_AT: Final = 12  # deadline_ms uint32 and seq uint64 lie side by side
_AFTER_SEQ: Final = 24
_VARYING: Final = struct.Struct("<IQ")
_COUNT_AT: Final = 8


class Head(NamedTuple):
    """A checked head. `pairs_at` is the offset of the pairs, `total` the bytes of the frame."""

    kind: int
    flags: int
    status: int
    layer: int
    epoch: tuple[int, int]
    model: int
    pairs: int
    tensors: tuple[tuple[Described, int], ...]
    pairs_at: int
    total: int

    def arrays(self, view: memoryview) -> dict[str, Array]:
        """The tensors, over the memory of `view`."""
        return {
            name: np.ndarray(shape, dtype, view, offset) if size else np.empty(shape, dtype)
            for (name, dtype, shape, size), offset in self.tensors
        }


_heads: dict[bytes, Head] = {}


def read_head(view: memoryview, kind: int) -> tuple[Head, int, int]:
    """The head of a frame of this kind that fills `view`, its deadline_ms and its seq.

    Raises:
        CorruptData: the head is not valid or does not describe `view`.

    """
    if len(view) < HEADER_BYTES:
        raise CorruptData(f"expert frame of {len(view)} bytes is shorter than its header of {HEADER_BYTES}")
    end = HEADER_BYTES + DESCRIPTOR.size * view[_COUNT_AT]
    key = bytes(view[:_DEADLINE_AT]) + bytes(view[_AFTER_SEQ:end])
    head = _heads.get(key)
    if head is None or head.kind != kind or head.total != len(view):
        head = remember(_heads, key, _parse(view, kind))
    deadline_ms, seq = _VARYING.unpack_from(view, _DEADLINE_AT)
    return head, deadline_ms, seq


def _parse(view: memoryview, kind: int) -> Head:
    magic, version, found, flags, status, count, layer, _, _, term, n, model, pairs, body, reserved = (
        HEADER.unpack_from(view)
    )
    if (magic, version, found) != (MAGIC, VERSION, kind):
        raise CorruptData(
            f"not an expert frame of kind {kind}: magic, version and kind are {magic!r} {version} {found}"
        )
    if body != len(view) - HEADER_BYTES or reserved:
        raise CorruptData(f"expert frame of {len(view)} bytes announces a body of {body} (reserved {reserved})")
    tensors, pairs_at = describe_tensors(view, HEADER_BYTES, count)
    if len(view) - pairs_at != pairs * PAIR_BYTES:
        raise CorruptData(f"expert frame has {len(view) - pairs_at} bytes for {pairs} pairs of {PAIR_BYTES}")
    if not tensors:
        raise CorruptData("expert frame carries no tensor")
    return Head(kind, flags, status, layer, (term, n), model, pairs, tensors, pairs_at, len(view))
