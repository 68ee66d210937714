"""Opening a GGUF file: typed access to its metadata and its dequantised tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import gguf

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import BadWeights, SourceError, UnsupportedModel
from expertmesh_forge.gguf_tensor import GgufTensor

__all__ = ["GgufFile"]

_MAGIC = b"GGUF"
_FORMAT = 4  # of the parts that say where a tensor lies and what it is


class GgufFile:
    """A GGUF file opened for reading; raises `SourceError` when it is not whole.

    `UnsupportedModel` names a tensor of an unknown format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _open(path)
        self._tensors = {found.name: _lying(path, found) for found in self._reader.tensors}

    @property
    def tensor_names(self) -> Iterable[str]:
        return self._tensors.keys()

    @property
    def tensors(self) -> Mapping[str, GgufTensor]:
        """Where every tensor lies, by the file's own names."""
        return self._tensors

    @property
    def header_bytes(self) -> int:
        """How far the metadata and the list of tensors reach."""
        return int(self._reader.data_offset)

    @cached_property
    def sha256(self) -> str:
        """Digest of the whole file, in lowercase hex."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @property
    def weight_formats(self) -> tuple[str, ...]:
        """Names of the tensor formats in the file, sorted (for example F32, Q4_1)."""
        return tuple(sorted({tensor.kind.name for tensor in self._tensors.values()}))

    def text(self, key: str, default: str | None = None) -> str:
        """The metadata value under `key` as text; `SourceError` if it is absent and has no default."""
        return str(self._value(key, default))

    def integer(self, key: str, default: int | None = None) -> int:
        """The metadata value under `key` as a whole number; `SourceError` as for `text`."""
        return int(self.real(key, default))

    def real(self, key: str, default: float | None = None) -> float:
        """The metadata value under `key` as a float; `SourceError` as for `text`."""
        value = self._value(key, default)
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise SourceError(
                f"metadata key {key!r} in {self.path.name} is {value!r}, not a number; this kind of file is not read"
            )
        return number

    def strings(self, key: str) -> list[str]:
        """The list of texts under `key`; `SourceError` if it is absent."""
        return [str(item) for item in self._list(key)]

    def integers(self, key: str) -> list[int]:
        """The list of whole numbers under `key`; `SourceError` if it is absent."""
        return [int(str(item)) for item in self._list(key)]

    def reals(self, key: str) -> list[float]:
        """The list of floats under `key`; `SourceError` if it is absent."""
        return [float(str(item)) for item in self._list(key)]

    def has(self, key: str) -> bool:
        return key in self._reader.fields

    def tensor(self, name: str, shape: tuple[int, ...]) -> Floats:
        """The tensor dequantised to float32 [out, in]; `BadWeights` unless it fits and is finite."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise BadWeights(
                f"{self.path.name} lacks the tensor {name!r} of shape {shape}; "
                "the file is incomplete or not a plain dense Llama-family model"
            )
        if tensor.shape != shape:
            raise BadWeights(
                f"tensor {name!r} in {self.path.name} has shape {tensor.shape}, but the metadata "
                f"asks for {shape}; get the file from its publisher again"
            )
        tensor.require_readable()
        return tensor.read()

    def _value(self, key: str, default: object) -> object:
        field = self._reader.fields.get(key)
        try:
            value = default if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{self.path.name} is damaged, metadata key {key!r} holds a text that is not UTF-8 ({error}); "
                "download it again"
            ) from error
        if value is None:
            raise SourceError(
                f"{self.path.name} has no metadata key {key!r}; convert the model again with a current GGUF exporter"
            )
        return value

    def _list(self, key: str) -> list[object]:
        value = self._value(key, None)
        if not isinstance(value, list):
            raise SourceError(f"metadata key {key!r} in {self.path.name} is not a list; the file is damaged")
        return value


class _Reader(gguf.GGUFReader):
    """Names the tensor whose format the library does not know."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(path)

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        for field in fields:
            number = int(field.parts[_FORMAT][0])
            if number not in gguf.GGML_QUANT_SIZES:
                raise UnsupportedModel(
                    f"{self._path}: tensor {field.name} is of the format {number}, which is not known: it is newer "
                    "than this toolchain, or was given up long ago; take the model in F16, BF16, Q8_0 or another "
                    "common format"
                )
        super()._build_tensors(start_offs, fields)


def _open(path: Path) -> gguf.GGUFReader:
    if not path.is_file():
        raise SourceError(f"no such model file: {path}; give the path of a .gguf file")
    with path.open("rb") as stream:
        magic = stream.read(len(_MAGIC))
    if magic != _MAGIC:
        raise SourceError(
            f"{path.name} is not a GGUF file (it starts with {magic!r}); give a .gguf file or a package that holds one"
        )
    try:
        reader = _Reader(path)
    # The reader maps the file and slices it, so a short file surfaces as any of these.
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path.name} cannot be read as GGUF: it is truncated or damaged ({error}); download it again"
        ) from error
    if reader.byte_order != "I":
        raise SourceError(f"{path.name} holds big-endian numbers; get the little-endian form of this file")
    _require_all_bytes(path, reader)
    return reader


def _lying(path: Path, found: gguf.ReaderTensor) -> GgufTensor:
    # The format lists the innermost size first.
    shape = tuple(int(size) for size in reversed(found.shape))
    return GgufTensor(found.name, path, found.tensor_type, shape, int(found.data_offset))


def _require_all_bytes(path: Path, reader: gguf.GGUFReader) -> None:
    size = path.stat().st_size
    needed = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    if size < needed:
        raise SourceError(f"{path.name} is truncated: {size} bytes, but its tensors end at {needed}; download it again")
