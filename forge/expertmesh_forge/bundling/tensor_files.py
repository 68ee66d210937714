"""Tensor files written straight into a blob store: the bytes of `encode_tensors` without a second copy of them."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from expertmesh_common.bundle.blobs import BlobStore
from expertmesh_common.bundle.manifest import Blob
from expertmesh_common.bundle.tensors import ALIGNMENT, Array

__all__ = ["put_tensors"]

_PIECE_BYTES = 8 * 2**20
_NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.uint16): "U16",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
}


def put_tensors(store: BlobStore, tensors: Mapping[str, Array]) -> Blob:
    """Write the tensors as one blob; a blob of these bytes that is there already stays."""
    store.folder.mkdir(parents=True, exist_ok=True)
    partial = store.folder / f"tensors.{os.getpid()}.partial"
    digest, size = hashlib.sha256(), 0
    try:
        with partial.open("wb") as file:
            for piece in _pieces(tensors):
                digest.update(piece)
                size += file.write(piece)
        partial.replace(store.path(digest.hexdigest()))
    finally:
        partial.unlink(missing_ok=True)
    return Blob(digest=digest.hexdigest(), size_bytes=size)


def _pieces(tensors: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    header = json.dumps(_header(tensors), separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    yield struct.pack("<Q", len(header)) + header
    for value in tensors.values():
        flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        for start in range(0, flat.nbytes, _PIECE_BYTES):
            yield flat[start : start + _PIECE_BYTES].data
        yield bytes(-flat.nbytes % ALIGNMENT)


def _header(tensors: Mapping[str, Array]) -> dict[str, object]:
    header: dict[str, object] = {}
    position = 0
    for number, (name, value) in enumerate(tensors.items()):
        end = position + value.nbytes
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [position, end]}
        position = end + -end % ALIGNMENT
        if position > end:  # the format allows no holes, so the gap is a tensor too
            filler = {"dtype": "U8", "shape": [position - end], "data_offsets": [end, position]}
            header[f"_pad{number}"] = filler
    return header
