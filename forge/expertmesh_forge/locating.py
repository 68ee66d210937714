"""Finding the model a person means: a path, or the name of a package that holds a GGUF file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from expertmesh_forge.errors import SourceError

__all__ = ["find_dense", "find_gguf", "holds_only_gguf"]


def find_dense(path_or_package: str) -> Path:
    """Return the folder of a Hugging Face checkpoint if it is one, else what `find_gguf` finds."""
    folder = Path(path_or_package)
    if (folder / "config.json").is_file() and not holds_only_gguf(folder):
        return folder
    return find_gguf(path_or_package)


def holds_only_gguf(folder: Path) -> bool:
    """Whether a folder holds GGUF files and no safetensors; publishers put a config beside either."""
    return folder.is_dir() and any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors*"))


def find_gguf(path_or_package: str) -> Path:
    """Return the file itself, the only .gguf of a folder, or the one inside an installed package.

    A package is located without importing it: it may need libraries that conversion does not.
    """
    path = Path(path_or_package)
    if path.is_file():
        return path
    if path.is_dir():
        return _only_gguf(path, path_or_package)
    name = path_or_package.replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        raise SourceError(
            f"{path_or_package!r} is neither a file nor an installed package; "
            "give the path of a .gguf file, or install the package that holds it"
        )
    return _only_gguf(Path(spec.origin).parent, path_or_package)


def _only_gguf(folder: Path, asked: str) -> Path:
    found = sorted(folder.rglob("*.gguf"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise SourceError(f"{asked!r} must hold exactly one .gguf file, found: {names}; give the file itself")
    return found[0]
