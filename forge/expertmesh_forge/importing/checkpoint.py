"""A checkpoint folder: its config, and its tensors as float32, read one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import BadWeights, SourceError, UnsupportedModel
from expertmesh_forge.importing.config import CheckpointConfig, read_json
from expertmesh_forge.importing.fp8 import SCALES_SUFFIX, fp8_blocks
from expertmesh_forge.importing.licensing import read_licence
from expertmesh_forge.importing.mxfp4 import MXFP4_BLOCK, dequantise_mxfp4
from expertmesh_forge.importing.shards import (
    CODE_DTYPES,
    FLOAT_DTYPES,
    FP8_DTYPE,
    READ_DTYPES,
    StoredTensor,
    read_header,
    read_tensor,
)
from expertmesh_forge.importing.tokenizing import TextFiles, read_text_files

__all__ = ["Checkpoint", "open_checkpoint"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`digest` names the source: a sha256 over its config, tensor layout, file sizes and times (not every byte)."""

    folder: Path
    config: CheckpointConfig
    tensors: Mapping[str, StoredTensor]
    digest: str

    def has(self, name: str) -> bool:
        return name in self.tensors

    def first(self, names: Sequence[str]) -> str:
        """The first of several names that the checkpoint has.

        Raises:
            BadWeights: it has none of them.

        """
        found = next((name for name in names if name in self.tensors), None)
        if found is None:
            raise BadWeights(
                f"{self.folder}: tensor {' or '.join(dict.fromkeys(names))} is missing; fetch the checkpoint again"
            )
        return found

    def read(self, name: str, shape: tuple[int, ...], part: int | None = None) -> Floats:
        """A tensor of `shape` as float32, or item `part` along its first axis; 8-bit floats times their scales.

        Raises:
            BadWeights: it or its scales are missing, have another shape, or hold NaN or infinity.
            UnsupportedModel: its dtype, or how it is scaled, is not read.

        """
        found = self.stored(name, shape)
        scales = self.scales_of(found)
        if scales is None:
            values = read_tensor(found, part).astype(np.float32, copy=False)
        else:
            codes, factors = read_tensor(found, part).view(np.uint8), self.read(scales.name, scales.shape, part)
            values = fp8_blocks(self.config, found).dequantise(codes, factors)
        return _finite(values, found, scales)

    def scales_of(self, tensor: StoredTensor) -> StoredTensor | None:
        """The scales by which 8-bit floats are multiplied; None of tensors that hold their values themselves.

        Raises:
            BadWeights: the scales are missing or misshapen.
            UnsupportedModel: they are of a kind that is not read.

        """
        if tensor.dtype != FP8_DTYPE:
            return None
        shape = fp8_blocks(self.config, tensor).scales_shape(tensor.shape)
        name = tensor.name + SCALES_SUFFIX
        about = f"{tensor.file}: tensor {tensor.name} of shape {list(tensor.shape)} is {FP8_DTYPE}, and its scales"
        if not self.has(name):
            raise BadWeights(f"{about} {name} are missing; fetch the checkpoint again")
        if self.tensors[name].shape != shape:
            found = list(self.tensors[name].shape)
            raise BadWeights(
                f"{about} {name} have the shape {found}, the weight_block_size of {self.config.path} asks for "
                f"{list(shape)}; fetch the checkpoint again"
            )
        return self.stored(name, shape, FLOAT_DTYPES)

    def read_mxfp4(self, name: str, shape: tuple[int, ...], part: int | None = None) -> Floats:
        """As `read`, of a tensor that is stored as packed codes `NAME_blocks` with `NAME_scales`."""
        codes, scales = self.packed(name, shape)
        packed = (read_tensor(one, part).view(np.uint8) for one in (codes, scales))
        return _finite(dequantise_mxfp4(*packed), codes, scales)

    def packed(self, name: str, shape: tuple[int, ...]) -> tuple[StoredTensor, StoredTensor]:
        """Where the MXFP4 codes and scales of a tensor lie, once they are known to be of `shape` [..., inner]."""
        blocks = (*shape[:-1], shape[-1] // MXFP4_BLOCK)
        codes = self.stored(f"{name}_blocks", (*blocks, MXFP4_BLOCK // 2), CODE_DTYPES)
        return codes, self.stored(f"{name}_scales", blocks, CODE_DTYPES)

    def stored(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...] = READ_DTYPES) -> StoredTensor:
        """Where the tensor lies, once it is known to have `shape` and one of `dtypes`."""
        found = self.tensors[self.first((name,))]
        if found.shape != shape:
            raise self._misshapen(found, shape)
        if found.dtype not in dtypes:
            raise UnsupportedModel(
                f"{found.file}: tensor {name} is {found.dtype}; read are {', '.join(dtypes)}. "
                "Take the bf16 or fp16 form of this checkpoint"
            )
        return found

    def _misshapen(self, found: StoredTensor, shape: tuple[int, ...]) -> BadWeights:
        alike = len(shape) == len(found.shape)
        wrong = [size for at, size in enumerate(shape) if not alike or size != found.shape[at]]
        return BadWeights(
            f"{found.file}: tensor {found.name} has shape {list(found.shape)}, the config asks for {list(shape)}; "
            f"{self.config.path} says {self.config.sizes_behind(found.name, wrong)}"
        )

    def texts(self, config: CheckpointConfig, vocabulary: int) -> TextFiles:
        """What turns text into tokens; raises as `read_text_files` does."""
        return read_text_files(self.folder, config, vocabulary)

    def licence(self) -> str:
        """Under which licence it says it is."""
        return read_licence(self.folder)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the config and every shard's header.

    Raises:
        SourceError: there is no checkpoint, its index is broken, or a shard is missing or cut short.

    """
    if not folder.is_dir():
        raise SourceError(
            f"{folder} is not a folder; give the folder that holds config.json and the .safetensors files"
        )
    config = read_json(folder / "config.json")
    files = _shard_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        tensors |= read_header(path)
    _check_index(folder, tensors)
    return Checkpoint(folder, config, tensors, _digest(folder, files))


def _finite(values: Floats, tensor: StoredTensor, scales: StoredTensor | None) -> Floats:
    if not np.isfinite(values).all():
        scaled = f", times {scales.name} of {scales.file.name}," if scales else ""
        raise BadWeights(f"{tensor.file}: tensor {tensor.name}{scaled} holds NaN or infinity; fetch the file again")
    return values


def _shard_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
    instead = f"; {others[0]} is there, but only safetensors files are read" if others else ""
    raise SourceError(f"{folder} holds neither {_SINGLE} nor {_INDEX}{instead}")


def _weight_map(folder: Path) -> Mapping[str, str]:
    values = read_json(folder / _INDEX).section("weight_map").values
    if not values:
        raise SourceError(f"{folder / _INDEX} has no weight_map; fetch it again")
    for name, file in values.items():
        if not isinstance(file, str) or Path(file).name != file or file in {"", ".."}:
            raise SourceError(f"{folder / _INDEX}: {name} lies in {file!r}, which is no file name of this folder")
    return {name: str(file) for name, file in values.items()}


def _check_index(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    if not (folder / _INDEX).is_file():
        return
    for name, file in _weight_map(folder).items():
        if name not in tensors or tensors[name].file.name != file:
            raise SourceError(
                f"{folder / _INDEX} says that {file} holds the tensor {name}, but it does not; fetch both again"
            )


def _digest(folder: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in files:
        about = path.stat()
        with path.open("rb") as file:
            header = file.read(8 + int.from_bytes(file.read(8), "little"))
        digest.update(f"{path.name} {about.st_size} {about.st_mtime_ns} ".encode() + header)
    return digest.hexdigest()
