"""safetensors files as checkpoints have them: which tensors lie where, and reading a part of one.

Only what is asked for is read, with plain reads: a map of the file would count against this process's memory, and a
file that someone cuts short under a map ends the process instead of raising.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from expertmesh_common.bundle.tensors import Array
from expertmesh_forge.errors import BadWeights, SourceError

__all__ = ["CODE_DTYPES", "FLOAT_DTYPES", "FP8_DTYPE", "READ_DTYPES", "StoredTensor", "read_header", "read_tensor"]

_MAX_HEADER_BYTES = 256 * 2**20
FP8_DTYPE = "F8_E4M3"
"""8-bit floats, which are weights only together with their scales; `read_tensor` gives their codes as uint8."""
_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U8": np.dtype(np.uint8),
    FP8_DTYPE: np.dtype(np.uint8),
}
FLOAT_DTYPES = ("F32", "F16", "BF16")
"""What scales are read from."""
READ_DTYPES = (*FLOAT_DTYPES, FP8_DTYPE)
"""What weights are read from."""
CODE_DTYPES = ("U8",)
"""What packed codes are read from: no weights before they are unpacked."""
_ITEM_BITS = {"F64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "BOOL": 8, "F8_E5M2": 8, "F8_E8M0": 8}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies. `dtype` is the name that safetensors gives it; `offset` counts from the file's start."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file, reading its header only.

    Raises:
        SourceError: the file is missing, cut short, or not a safetensors file.

    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER_BYTES, file_bytes - 8):
                raise SourceError(f"{path} is cut short or no safetensors file: its header would take {length} bytes")
            header = json.loads(file.read(length))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; fetch it again") from error
    except (struct.error, ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not a safetensors file: {error}; fetch it again") from error
    try:
        found = [_stored(path, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise SourceError(f"{path} has a broken safetensors header: {error}; fetch it again") from error
    for tensor in found:
        if tensor.offset + tensor.size_bytes > file_bytes:
            end = tensor.offset + tensor.size_bytes
            raise SourceError(
                f"{path} is cut short: tensor {tensor.name} ends at byte {end}, the file at {file_bytes}; "
                "fetch it again"
            )
    return {tensor.name: tensor for tensor in found}


def read_tensor(tensor: StoredTensor, part: int | None = None) -> Array:
    """The tensor, or item `part` along its first axis, as it is stored; its dtype must be in one of the lists above.

    Raises:
        BadWeights: the file ended early.

    """
    dtype, shape, offset = _DTYPES[tensor.dtype], tensor.shape, tensor.offset
    if part is not None:
        shape = shape[1:]
        offset += part * math.prod(shape) * dtype.itemsize
    wanted = math.prod(shape)
    found = np.fromfile(tensor.file, np.uint8, wanted * dtype.itemsize, offset=offset)
    if len(found) != wanted * dtype.itemsize:
        raise BadWeights(f"{tensor.file} ended inside tensor {tensor.name}; fetch it again")
    values: Array = found.view(dtype).reshape(shape)
    return values


def _stored(path: Path, name: str, entry: dict[str, object], base: int) -> StoredTensor:
    dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])  # type: ignore[attr-defined]
    start, end = (int(n) for n in entry["data_offsets"])  # type: ignore[attr-defined]
    bits = _DTYPES[dtype].itemsize * 8 if dtype in _DTYPES else _ITEM_BITS.get(dtype)
    if min((0, start, *shape)) < 0 or end < start or (bits and (end - start) * 8 != math.prod(shape) * bits):
        raise ValueError(f"tensor {name} of shape {list(shape)} and dtype {dtype} has data from {start} to {end}")
    return StoredTensor(name, path, dtype, shape, base + start, end - start)
