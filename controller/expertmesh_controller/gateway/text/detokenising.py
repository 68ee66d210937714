"""Tokens to text, one at a time, whole characters only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Detokeniser"]

_UNFINISHED = "�"
_LONGEST_WAIT_TOKENS = 8  # a character has at most four bytes; bytes that never become one are shown as they are
_LONGEST_WINDOW_TOKENS = 16


class Detokeniser:
    """Turns token ids into text pieces whose sum is the text of all ids.

    Decoding a token depends on those before it (spaces, split characters), so each step decodes a short window twice,
    with and without the new token, and gives the difference.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._shown = 0  # tokens of the window whose text is out

    def feed(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._window.append(token_id)
        text = self._decode(self._window)
        waiting = len(self._window) - self._shown
        if text.endswith(_UNFINISHED) and waiting < _LONGEST_WAIT_TOKENS:
            return ""
        return self._show(text)

    def flush(self) -> str:
        """Text of what was still waiting, with replacement characters for broken bytes."""
        return self._show(self._decode(self._window))

    def _show(self, text: str) -> str:
        piece = text[len(self._decode(self._window[: self._shown])) :]
        if piece or len(self._window) > _LONGEST_WINDOW_TOKENS:  # keep some text in front: it decides about spaces
            self._window = self._window[self._shown :]
        self._shown = len(self._window)
        return piece
