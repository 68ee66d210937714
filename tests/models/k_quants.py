"""Blocks of quantised values in GGUF's formats: random ones, and what each value means by the format's layout.

One value at a time in Python's own floats, which hold every product of these formats without rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np

Kind = gguf.GGMLQuantizationType

_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_SCALES_AT = {  # where a block's 16-bit floats lie
    Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,),
    Kind.IQ4_NL: (0,), Kind.IQ4_XS: (0,),
}  # fmt: skip


def random_blocks(kind: Kind, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """uint8 [..., bytes of a row]: any bits at all, but for scales that are small numbers of either sign."""
    random = np.random.default_rng(seed)
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // values, size), np.uint8)
    for at in _SCALES_AT[kind]:
        scales = random.uniform(-0.01, 0.01, blocks.shape[:-1]).astype("<f2")
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def values_of(kind: Kind, rows: np.ndarray) -> np.ndarray:
    """float32 [rows, width] of uint8 [rows, bytes of a row]."""
    count, size = gguf.GGML_QUANT_SIZES[kind]
    value = _VALUES[kind]
    found = [value(block.tobytes(), i) for block in rows.reshape(-1, size) for i in range(count)]
    return np.array(found, np.float32).reshape(len(rows), -1)


def _half(block: bytes, at: int) -> float:
    return float(np.frombuffer(block, "<f2", 1, at)[0])


def _nibble(byte: int, *, high: bool) -> int:
    return byte >> 4 if high else byte & 15


def _two_bits(packed: bytes, i: int) -> int:
    """128 values in 32 bytes: the four of a byte are 32 apart."""
    half, run, place = i // 128, i % 128 // 32, i % 32
    return packed[32 * half + place] >> 2 * run & 3


def _q2(block: bytes, i: int) -> float:
    scale = block[i // 16]
    return _half(block, 80) * (scale & 15) * _two_bits(block[16:80], i) - _half(block, 82) * (scale >> 4)


def _q3(block: bytes, i: int) -> float:
    mask, packed, scales = block[:32], block[32:96], block[96:108]
    part = i // 16
    low, high = _nibble(scales[part % 8], high=part >= 8), scales[8 + part % 4] >> 2 * (part // 4) & 3
    level = (_two_bits(packed, i) | (mask[i % 32] >> i // 32 & 1) << 2) - 4
    return _half(block, 108) * ((low | high << 4) - 32) * level


def _scale_and_least(packed: bytes, part: int) -> tuple[int, int]:
    """Six bits each for eight parts, in twelve bytes."""
    if part < 4:
        return packed[part] & 63, packed[part + 4] & 63
    low = packed[part + 4]
    return low & 15 | packed[part - 4] >> 6 << 4, low >> 4 | packed[part] >> 6 << 4


def _q4(block: bytes, i: int) -> float:
    part = i // 32
    scale, least = _scale_and_least(block[4:16], part)
    level = _nibble(block[16 + 32 * (part // 2) + i % 32], high=part % 2 == 1)
    return _half(block, 0) * scale * level - _half(block, 2) * least


def _q5(block: bytes, i: int) -> float:
    part = i // 32
    scale, least = _scale_and_least(block[4:16], part)
    level = _nibble(block[48 + 32 * (part // 2) + i % 32], high=part % 2 == 1)
    fifth = block[16 + i % 32] >> part & 1
    return _half(block, 0) * scale * (level | fifth << 4) - _half(block, 2) * least


def _q6(block: bytes, i: int) -> float:
    half, run, place = i // 128, i % 128 // 32, i % 32
    low = _nibble(block[64 * half + 32 * (run % 2) + place], high=run >= 2)
    level = (low | _two_bits(block[128:192], i) << 4) - 32
    scale = int.from_bytes(block[192 + i // 16 : 193 + i // 16], signed=True)
    return _half(block, 208) * scale * level


def _iq4_nl(block: bytes, i: int) -> float:
    return _half(block, 0) * _LEVELS[_nibble(block[2 + i % 16], high=i >= 16)]


def _iq4_xs(block: bytes, i: int) -> float:
    part, place = i // 32, i % 32
    high = int.from_bytes(block[2:4], "little") >> 2 * part & 3
    scale = (_nibble(block[4 + part // 2], high=part % 2 == 1) | high << 4) - 32
    return _half(block, 0) * scale * _LEVELS[_nibble(block[8 + 16 * part + place % 16], high=place >= 16)]


_VALUES: dict[Kind, Callable[[bytes, int], float]] = {
    Kind.Q2_K: _q2, Kind.Q3_K: _q3, Kind.Q4_K: _q4, Kind.Q5_K: _q5, Kind.Q6_K: _q6, Kind.IQ4_NL: _iq4_nl,
    Kind.IQ4_XS: _iq4_xs,
}  # fmt: skip
