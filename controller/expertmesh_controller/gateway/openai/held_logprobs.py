"""Log probabilities of an answer with stop strings: its text is held back, comes in parts, and may be taken back."""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass

from expertmesh_controller.gateway.openai.logprobs import Entry, Placed, own_text

__all__ = ["HeldEntries"]

_MARK = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An entry and the text that its token should add; without one, marks for bytes that became no character."""

    entry: Entry | None
    text: str


class HeldEntries:
    """Lays the tokens' own texts along the text that comes out, in order; an entry is out when its text has begun.

    Counting characters would not do: tokens may have no text (special ones), or another than their own (a space that
    is left out at the beginning). `start` is the number of characters in front of the answer.
    """

    def __init__(self, start: int = 0) -> None:
        self._place = start  # of the first character of `_ahead`
        self._ahead = ""  # text that is out and belongs to no entry yet
        self._owed = ""  # the end of the last placed token's text, which is not out yet
        self._waiting: deque[_Waiting] = deque()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, entry: Entry, text: str) -> list[Placed]:
        """Add the entry of a token with which `text` became certain; the entries whose text is out now."""
        added, own = self._decoder.decode(entry.text_bytes), own_text(entry.text_bytes)
        if own is not None and len(added) > len(own):
            self._waiting.append(_Waiting(None, added[: len(added) - len(own)]))
        self._waiting.append(_Waiting(entry, added if own is None else own))
        return self._laid(text)

    def end(self, text: str, *, whole: bool) -> list[Placed]:
        """The last entries of an answer, with the end of its text; those behind it too unless a stop took them back."""
        placed = self._laid(text)
        if whole:
            placed += [Placed(self._place, waiting.entry) for waiting in self._waiting if waiting.entry is not None]
        self._waiting.clear()
        return placed

    def _laid(self, text: str) -> list[Placed]:
        self._ahead += text
        placed: list[Placed] = []
        while self._waiting and self._pay() and self._past_marks(self._waiting[0].text):
            waiting = self._waiting.popleft()
            self._owed = self._begin(waiting.text)
            if waiting.entry is not None:
                placed.append(Placed(self._place, waiting.entry))
        return placed

    def _begin(self, text: str) -> str:
        """What of the token's own text stands ahead: all of it, all but spaces in front, or nothing."""
        for candidate in (text, text.lstrip(" ")):
            if candidate and (self._ahead.startswith(candidate) or candidate.startswith(self._ahead)):
                return candidate
        return ""

    def _past_marks(self, text: str) -> bool:
        """Step over marks that are not this token's: broken bytes may become more of them than are counted here."""
        if text and not text.startswith(_MARK):
            self._step(len(self._ahead) - len(self._ahead.lstrip(_MARK)))
        return bool(self._ahead)

    def _pay(self) -> bool:
        """Step over the text of the last placed token; whether there is more."""
        count = min(len(self._owed), len(self._ahead))
        self._owed = self._owed[count:]
        self._step(count)
        return bool(self._ahead)

    def _step(self, count: int) -> None:
        self._place += count
        self._ahead = self._ahead[count:]
