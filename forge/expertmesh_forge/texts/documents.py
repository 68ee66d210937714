"""Documents and their split; a document is calibration or held-out by its content alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["DOMAINS", "Document", "Domain", "Split", "split_documents"]

Domain = Literal["prose", "technical", "python"]
DOMAINS: tuple[Domain, ...] = ("prose", "technical", "python")

_HELD_OUT_ONE_IN = 3


@dataclass(frozen=True, slots=True)
class Document:
    """One text with the sha256 of its content."""

    domain: Domain
    name: str
    text: str
    sha256: str

    @classmethod
    def of(cls, domain: Domain, name: str, text: str) -> Document:
        return cls(domain, name, text, hashlib.sha256(text.encode()).hexdigest())

    @property
    def held_out(self) -> bool:
        """True if the document may only be measured on, never calibrated with."""
        return int(self.sha256[:8], 16) % _HELD_OUT_ONE_IN == 0


@dataclass(frozen=True, slots=True)
class Split:
    """Documents in content-hash order, which is fixed and unrelated to names and dates."""

    calibration: tuple[Document, ...]
    held_out: tuple[Document, ...]


def split_documents(documents: Iterable[Document]) -> Split:
    """Split by content hash; copies of one text collapse into one document."""
    unique = {document.sha256: document for document in documents}
    ordered = [unique[digest] for digest in sorted(unique, key=lambda digest: digest[8:])]
    return Split(
        calibration=tuple(document for document in ordered if not document.held_out),
        held_out=tuple(document for document in ordered if document.held_out),
    )
