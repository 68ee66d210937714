"""Tensor files: safetensors with every tensor aligned to 64 bytes, so that graphs can point into them.

The format is that of the safetensors library (little-endian, header first); the header is padded with spaces so that
the data section starts aligned, and gaps between tensors are filled with zero-filled `_pad` entries.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from expertmesh_common.errors import CorruptData

ALIGNMENT = 64
MAX_HEADER_BYTES = 16 * 2**20

Array = NDArray[np.generic]

BFLOAT16: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
_DTYPES: dict[str, np.dtype[np.generic]] = {
    "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": BFLOAT16, "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64), "U8": np.dtype(np.uint8), "I8": np.dtype(np.int8),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorView:
    """Where a tensor lies in its file. `offset` counts from the start of the file."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def encode_tensors(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """The file's bytes; the same input gives the same bytes, so digests are stable."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    parts: list[bytes] = []
    position = 0
    for number, (name, value) in enumerate(tensors.items()):
        data = np.ascontiguousarray(value).tobytes()
        header[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [position, position + len(data)],
        }
        parts.append(data)
        position += len(data)
        filler = -position % ALIGNMENT
        if filler:  # safetensors allows no holes, so the gap is a tensor too
            header[f"_pad{number}"] = {"dtype": "U8", "shape": [filler], "data_offsets": [position, position + filler]}
            parts.append(bytes(filler))
            position += filler
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def tensor_views(data: bytes | memoryview, file_bytes: int, origin: str) -> dict[str, TensorView]:
    """The layout of a file of `file_bytes` bytes from its first bytes (header included).

    Raises:
        CorruptData: the header does not describe the file.

    """
    try:
        (length,) = struct.unpack_from("<Q", data, 0)
        if length > MAX_HEADER_BYTES or 8 + length > len(data):
            raise CorruptData(f"{origin}: tensor header of {length} bytes does not fit the file")
        header = json.loads(bytes(data[8 : 8 + length]))
        views = {name: _view(name, entry, 8 + length) for name, entry in header.items() if not name.startswith("_")}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptData(f"{origin}: not a tensor file: {error}") from error
    for view in views.values():
        if view.offset + view.size_bytes > file_bytes:
            raise CorruptData(
                f"{origin}: tensor {view.name} ends at {view.offset + view.size_bytes}, the file at {file_bytes}"
            )
    return views


def _view(name: str, entry: dict[str, object], base: int) -> TensorView:
    dtype = _DTYPES[str(entry["dtype"])]
    shape = tuple(int(n) for n in entry["shape"])  # type: ignore[attr-defined]
    start, end = (int(n) for n in entry["data_offsets"])  # type: ignore[attr-defined]
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if min((0, *shape)) < 0 or start < 0 or end - start != size:
        raise ValueError(f"tensor {name} of shape {shape} has data from {start} to {end}")
    return TensorView(name, dtype, shape, base + start, size)


def read_views(path: Path) -> dict[str, TensorView]:
    """The layout of a tensor file, reading its header only."""
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise CorruptData(f"{path}: {len(head)} bytes are too few for a tensor file")
        head += file.read(min(struct.unpack("<Q", head)[0], MAX_HEADER_BYTES))
        file_bytes = file.seek(0, 2)
    return tensor_views(head, file_bytes, str(path))


def read_tensors(path: Path) -> dict[str, Array]:
    """Every tensor of a file as read-only arrays over one memory map."""
    views = read_views(path)
    raw = np.memmap(path, np.uint8, mode="r")
    return {name: raw[v.offset : v.offset + v.size_bytes].view(v.dtype).reshape(v.shape) for name, v in views.items()}
