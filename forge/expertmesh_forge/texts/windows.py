"""Cutting documents into equal windows of tokens, some of them dressed as a chat turn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jinja2
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from expertmesh_common.chat_templates import chat_template
from expertmesh_common.errors import CorruptData
from expertmesh_forge.errors import SourceError, TextsError
from expertmesh_forge.texts.documents import DOMAINS, Document, Domain

__all__ = ["TextWindows", "cut_windows"]

_CHAT_ONE_IN = 4
# Domains differ in characters per token; a window is cut from this many, which always suffices.
_CHARACTERS_PER_TOKEN = 12


@dataclass(frozen=True, slots=True)
class TextWindows:
    """`tokens` is int64 [windows, window_tokens]; row i comes from the document `names[i]`."""

    tokens: npt.NDArray[np.int64]
    domains: tuple[Domain, ...]
    names: tuple[str, ...]
    sha256: str

    @property
    def token_count(self) -> int:
        return int(self.tokens.size)

    def rows_of(self, domain: Domain) -> npt.NDArray[np.int64]:
        """Indices of the rows of one domain."""
        return np.flatnonzero(np.array(self.domains) == domain)


def cut_windows(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    *,
    per_domain: int,
    window_tokens: int,
    chat_template: str | None = None,
    per_document: int = 1,
) -> TextWindows:
    """Take up to `per_domain` windows of each domain, at most `per_document` from one document.

    With a chat template every fourth window is the answer to a chat turn, because served prompts
    look like that. A domain that gives no window at all is a `TextsError`.
    """
    rows: list[list[int]] = []
    chosen: list[Document] = []
    for domain in DOMAINS:
        own = [document for document in documents if document.domain == domain]
        taken = 0
        for document, text in _pieces(own, window_tokens * _CHARACTERS_PER_TOKEN, per_document):
            if taken == per_domain:
                break
            dressed = text
            if chat_template is not None and taken % _CHAT_ONE_IN == 0:
                dressed = _as_chat(text, chat_template)
            ids = tokenizer.encode(dressed, add_special_tokens=False).ids
            if len(ids) >= window_tokens:
                rows.append(ids[:window_tokens])
                chosen.append(document)
                taken += 1
        if not taken:
            raise TextsError(f"no {domain} document has {window_tokens} tokens; ask for shorter windows")
    tokens = np.array(rows, dtype=np.int64)
    return TextWindows(
        tokens=tokens,
        domains=tuple(document.domain for document in chosen),
        names=tuple(document.name for document in chosen),
        sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
    )


def _pieces(documents: Sequence[Document], characters: int, per_document: int) -> Iterator[tuple[Document, str]]:
    """First pieces of every document, then second pieces, and so on; pieces never overlap."""
    for turn in range(per_document):
        for document in documents:
            pieces = max(1, len(document.text) // characters)
            if turn < pieces:
                piece = (int(document.sha256[:8], 16) + turn) % pieces
                yield document, document.text[piece * characters : (piece + 1) * characters]


def _as_chat(text: str, template: str) -> str:
    question, answer = text[: len(text) // 40], text[len(text) // 40 :]
    messages = [
        {"role": "user", "content": f"Continue this text:\n\n{question.strip()}"},
        {"role": "assistant", "content": answer.strip()},
    ]
    try:
        return chat_template(template).render(messages=messages)
    except (CorruptData, jinja2.TemplateError, ValueError, TypeError) as error:
        raise SourceError(f"the model's chat template cannot be used for calibration: {error}") from error
