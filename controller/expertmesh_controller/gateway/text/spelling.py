"""The text of single tokens, as bytes: a token may be a part of a character, which is no text by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

__all__ = ["Spelling"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_METASPACE = "▁"
_REMEMBERED_TOKENS = 65_536


class Spelling:
    """Knows from the tokenizer's own description (`tokenizer.json`) how its vocabulary writes bytes.

    `piece` gives the vocabulary's spelling of a token, None for an unknown one.
    """

    def __init__(self, description: str, piece: Callable[[int], str | None]) -> None:
        document = json.loads(description)
        self._piece = piece
        self._special = frozenset(token["id"] for token in document.get("added_tokens") or ())
        self._bytes_of = _byte_level if "ByteLevel" in _decoders(document.get("decoder")) else _with_byte_tokens
        self.text_bytes = lru_cache(_REMEMBERED_TOKENS)(self._text_bytes)
        """UTF-8 bytes of a token; the bytes of an answer's tokens, joined, are its text."""

    def _text_bytes(self, token_id: int) -> bytes:
        piece = self._piece(token_id) or ""
        return piece.encode() if token_id in self._special else self._bytes_of(piece)


def _decoders(description: dict[str, Any] | None) -> frozenset[str]:
    """The kinds of decoder in a (possibly nested) description."""

    def kinds(part: dict[str, Any]) -> Iterator[str]:
        yield part["type"]
        for inner in part.get("decoders", ()):
            yield from kinds(inner)

    return frozenset(kinds(description) if description else ())


def _with_byte_tokens(piece: str) -> bytes:
    """SentencePiece's way: a mark in place of spaces, and tokens named `<0x0A>` for single bytes."""
    found = _BYTE_TOKEN.fullmatch(piece)
    return bytes([int(found[1], 16)]) if found else piece.replace(_METASPACE, " ").encode()


def _byte_level(piece: str) -> bytes:
    """GPT-2's way: every byte is a printable character."""
    try:
        return bytes(_BYTES[character] for character in piece)
    except KeyError:  # no byte-level token after all
        return piece.encode()


def _byte_alphabet() -> dict[str, int]:
    """Printable Latin-1 characters stand for themselves, the other bytes for the characters from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()
