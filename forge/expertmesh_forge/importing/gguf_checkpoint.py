"""A GGUF file of a mixture of experts as a checkpoint: the families read it as they read a folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from expertmesh_forge.dense_model import Floats
from expertmesh_forge.errors import SourceError
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_tensor import GgufTensor
from expertmesh_forge.gguf_tokenizer import read_chat_settings, read_tokenizer
from expertmesh_forge.importing.checkpoint import Checkpoint
from expertmesh_forge.importing.config import CheckpointConfig
from expertmesh_forge.importing.gguf_config import architecture_of, read_gguf_config
from expertmesh_forge.importing.gguf_names import Held, hugging_face_names, require_tensors
from expertmesh_forge.importing.shards import StoredTensor
from expertmesh_forge.importing.tokenizing import TextFiles

__all__ = ["GgufCheckpoint", "open_gguf"]

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufCheckpoint(Checkpoint):
    """`folder` is the file itself. `tensors` say F32, whatever is stored: that is what reading gives."""

    held: Mapping[str, Held]
    text_files: TextFiles
    said_licence: str

    def read(self, name: str, shape: tuple[int, ...], part: int | None = None) -> Floats:
        """A tensor of `shape` dequantised to float32, or item `part` along its first axis."""
        self.stored(name, shape)
        held = self.held[name]
        return held.read() if part is None else Held(held.tensor.item(part)).read()

    def texts(self, config: CheckpointConfig, vocabulary: int) -> TextFiles:  # noqa: ARG002 - the file says both
        return self.text_files

    def licence(self) -> str:
        return self.said_licence


def open_gguf(path: Path) -> GgufCheckpoint:
    """Read the metadata and the list of tensors, of all parts if the model is split over several files.

    Raises:
        SourceError: a file is missing, cut short, or no GGUF file, or lacks metadata.
        UnsupportedModel: the architecture, the tokenizer, a setting or a tensor's format is not imported.
        BadWeights: a tensor is missing.

    """
    files = _parts(path)
    first = files[0]
    naming = architecture_of(first).naming
    tensors = _tensors(files)
    config = read_gguf_config(first, tensors)
    require_tensors(path, tensors, naming, config.size("num_hidden_layers"), config.size("num_experts"))
    heads = config.size("num_attention_heads"), config.size("num_key_value_heads")
    held = hugging_face_names(tensors, naming, *heads)
    return GgufCheckpoint(
        folder=path,
        config=config,
        tensors={name: _stored(one.tensor) for name, one in held.items()},
        digest=_digest(files),
        held=held,
        text_files=_texts(first),
        said_licence=first.text("general.license", "not stated"),
    )


def _parts(path: Path) -> list[GgufFile]:
    named = _PART.fullmatch(path.name)
    if named is None:
        file = GgufFile(path)
        if file.integer("split.count", 1) > 1:
            raise SourceError(
                f"{path} is one of {file.integer('split.count')} parts of a model; give all of them the names that "
                "they were published with, NAME-00001-of-0000N.gguf, in one folder"
            )
        return [file]
    names = (f"{named[1]}-{number:05}-of-{named[3]}.gguf" for number in range(1, int(named[3]) + 1))
    return [GgufFile(path.with_name(name)) for name in names]


def _tensors(files: Sequence[GgufFile]) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    for file in files:
        tensors |= file.tensors
    for tensor in tensors.values():
        tensor.require_readable()
    return tensors


def _stored(tensor: GgufTensor) -> StoredTensor:
    return StoredTensor(tensor.name, tensor.file, "F32", tensor.shape, tensor.offset, tensor.size_bytes)


def _texts(file: GgufFile) -> TextFiles:
    chat = read_chat_settings(file)
    return TextFiles(
        tokenizer_json=read_tokenizer(file).to_str(),
        chat_template=chat.chat_template,
        bos_id=chat.bos_id if chat.adds_bos else None,
        eos_ids=chat.eos_ids,
    )


def _digest(files: Sequence[GgufFile]) -> str:
    """Over metadata, list of tensors, sizes and times; the weights themselves are too many to read twice."""
    digest = hashlib.sha256()
    for file in files:
        about = file.path.stat()
        with file.path.open("rb") as stream:
            digest.update(f"{file.path.name} {about.st_size} {about.st_mtime_ns} ".encode())
            digest.update(stream.read(file.header_bytes))
    return digest.hexdigest()
