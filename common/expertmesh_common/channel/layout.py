"""Byte layout of frames: the fixed structures, and tensors to and from descriptors plus raw bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from expertmesh_common.errors import CorruptData, InvalidInput

Array = NDArray[np.generic]
Buffer = bytes | bytearray | memoryview
Chunk = bytes | memoryview  # what `sendmsg` and `b"".join` take

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

MAGIC: Final = b"EXMF"
VERSION: Final = 1
# magic, version, kind, flags, status, tensors, layer, deadline_ms, seq, term, n, model, pairs, body bytes, reserved
HEADER: Final = struct.Struct("<4sBBBBHHIQQQQIIQ")
HEADER_BYTES: Final = HEADER.size
# name, dtype, dimensions, reserved, the dimensions
DESCRIPTOR: Final = struct.Struct("<12sBBH4I")
PAIR_BYTES: Final = 10
MAX_TENSOR_BYTES: Final = 2**31 - 1

_DTYPES: Final[dict[int, np.dtype[np.generic]]] = {
    code: np.dtype(kind) for code, kind in enumerate(("f4", "f2", "f8", "i1", "u1", "i2", "u2", "i4", "i8"), start=1)
}
_CODES: Final = {dtype: code for code, dtype in _DTYPES.items()}
_PADDING: Final = [bytes(n) for n in range(8)]


Described = tuple[str, np.dtype[np.generic], tuple[int, ...], int]
"""Name, dtype, shape and bytes of a tensor."""

# Descriptors recur on every frame, so those that passed their checks are remembered.
_MAX_REMEMBERED: Final = 4096
_packed: dict[tuple[str, np.dtype[np.generic], tuple[int, ...]], bytes] = {}


def pack_tensors(tensors: Mapping[str, Array]) -> tuple[bytes, list[Chunk], int]:
    """Descriptors, the tensors' own memory with padding between, and the bytes of the latter.

    Raises:
        InvalidInput: a name is longer than 12 ASCII bytes, or a dtype or number of dimensions has no place in a frame.

    """
    descriptors = b""
    data: list[Chunk] = []
    data_bytes = 0
    for name, value in tensors.items():
        key = (name, value.dtype, value.shape)
        descriptors += _packed.get(key) or remember(_packed, key, _descriptor(*key))
        if not value.flags.c_contiguous:
            value = np.ascontiguousarray(value)  # noqa: PLW2901
        data.append(value.data)
        size = value.nbytes
        data_bytes += size
        if size & 7:
            data.append(_PADDING[-size & 7])
            data_bytes += -size & 7
    return descriptors, data, data_bytes


def describe_tensors(view: memoryview, position: int, count: int) -> tuple[tuple[tuple[Described, int], ...], int]:
    """`count` tensors described at `position`, each with the offset of its data, and the offset after all data.

    Raises:
        CorruptData: a descriptor is not valid or its data does not fit.

    """
    found: dict[str, tuple[Described, int]] = {}
    data = position + count * DESCRIPTOR.size
    if data > len(view):
        raise CorruptData(f"{count} tensor descriptors do not fit a frame of {len(view)} bytes")
    for number in range(count):
        start = position + number * DESCRIPTOR.size
        name, dtype, shape, size = _read_descriptor(bytes(view[start : start + DESCRIPTOR.size]))
        if data + size > len(view):
            raise CorruptData(f"tensor {name} {dtype} {shape} ends at byte {data + size} of a frame of {len(view)}")
        if name in found:
            raise CorruptData(f"tensor {name} occurs twice in one frame")
        found[name] = ((name, dtype, shape, size), data)
        data += size + (-size & 7)
    if data > len(view):
        raise CorruptData(f"padding of the last tensor ends at byte {data} of a frame of {len(view)}")
    return tuple(found.values()), data


def chunk_bytes(chunks: Sequence[Chunk]) -> int:
    """Bytes of all chunks together."""
    total = 0
    for chunk in chunks:
        total += len(chunk) if type(chunk) is bytes else memoryview(chunk).nbytes
    return total


def remember(memory: dict[_Key, _Value], key: _Key, value: _Value) -> _Value:
    """Keep `value` in a memory of bounded size; returns it."""
    if len(memory) >= _MAX_REMEMBERED:
        memory.clear()
    memory[key] = value
    return value


def _descriptor(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    code = _CODES.get(dtype)
    if code is None or len(shape) > 4 or not _valid_name(name):
        raise InvalidInput(f"tensor {name!r} {dtype} {shape} fits no frame: name <= 12 letters, <= 4 dimensions")
    return DESCRIPTOR.pack(name.encode(), code, len(shape), 0, *shape, *(0,) * (4 - len(shape)))


def _read_descriptor(raw: bytes) -> Described:
    padded, code, dimensions, reserved, *dims = DESCRIPTOR.unpack(raw)
    name = padded.rstrip(b"\0").decode("latin-1")
    dtype = _DTYPES.get(code)
    if dtype is None or dimensions > 4 or reserved or any(dims[dimensions:]) or not _valid_name(name):
        raise CorruptData(f"tensor descriptor is not valid: name {name!r} dtype {code} dimensions {dimensions} {dims}")
    shape = tuple(dims[:dimensions])
    if dtype.itemsize * math.prod(n or 1 for n in shape) > MAX_TENSOR_BYTES:
        raise CorruptData(f"tensor {name} {dtype} {shape} is larger than {MAX_TENSOR_BYTES} bytes")
    return name, dtype, shape, dtype.itemsize * math.prod(shape)


def _valid_name(name: str) -> bool:
    return len(name) <= 12 and name.isascii() and name.isidentifier()
