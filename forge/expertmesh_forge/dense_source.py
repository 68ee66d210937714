"""A dense model before its weights are read: a GGUF file, or the folder of a Hugging Face checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from expertmesh_forge import dense_reader, gguf_reader
from expertmesh_forge.dense_model import DenseConfig, DenseModel
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_tokenizer import ChatSettings, read_chat_settings, read_tokenizer
from expertmesh_forge.importing.checkpoint import open_checkpoint
from expertmesh_forge.locating import find_dense

__all__ = ["DenseSource", "open_dense"]


@dataclass(frozen=True, slots=True)
class DenseSource:
    """`name` is what a bundle is called by default; `read` takes the weights' time and memory."""

    name: str
    config: DenseConfig
    tokenizer: Tokenizer
    chat: ChatSettings
    read: Callable[[], DenseModel]


def open_dense(path_or_package: str) -> DenseSource:
    """Open what `find_dense` finds.

    Raises:
        SourceError: nothing is found, or it cannot be read.
        UnsupportedModel: it is of a kind that is not converted.
        BadWeights: a tensor of a folder is missing or misshapen.

    """
    path = find_dense(path_or_package)
    return _open_folder(path) if path.is_dir() else _open_gguf(path)


def _open_gguf(path: Path) -> DenseSource:
    file = GgufFile(path)
    return DenseSource(
        name=_label(path.name.partition(".")[0]),
        config=gguf_reader.read_config(file),
        tokenizer=read_tokenizer(file),
        chat=read_chat_settings(file),
        read=partial(gguf_reader.read_model, file),
    )


def _open_folder(path: Path) -> DenseSource:
    source = open_checkpoint(path)
    config = dense_reader.read_config(source)
    dense_reader.outline_model(source)
    texts = source.texts(source.config, config.vocab)
    return DenseSource(
        name=_label(path.resolve().name),
        config=config,
        tokenizer=Tokenizer.from_str(texts.tokenizer_json),
        chat=ChatSettings(texts.chat_template, texts.bos_id, texts.eos_ids, adds_bos=texts.bos_id is not None),
        read=partial(dense_reader.read_model, source),
    )


def _label(text: str) -> str:
    """What a manifest takes as a name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._").lower()[:128] or "converted"
