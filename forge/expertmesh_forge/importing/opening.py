"""What a path holds: a GGUF file, or the folder of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from expertmesh_forge.importing.checkpoint import Checkpoint, open_checkpoint
from expertmesh_forge.importing.gguf_checkpoint import open_gguf
from expertmesh_forge.locating import find_gguf, holds_only_gguf

__all__ = ["open_source"]


def open_source(path: Path) -> Checkpoint:
    """Open either for reading; a folder without safetensors may hold one GGUF file.

    Raises:
        SourceError: there is neither, or a file is missing, cut short or broken.
        UnsupportedModel: the GGUF file is of a kind that is not imported.
        BadWeights: the GGUF file lacks a tensor.

    """
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return open_gguf(path)
    if holds_only_gguf(path):
        return open_gguf(find_gguf(str(path)))
    return open_checkpoint(path)
