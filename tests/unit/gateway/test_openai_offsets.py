"""Where each token's text begins, for answers with stop strings: against places that are known by construction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmesh_controller.gateway.openai.held_logprobs import HeldEntries
from expertmesh_controller.gateway.openai.logprobs import Entry, WaitingEntries
from expertmesh_controller.gateway.text.streaming import AnswerText

SPACE, SPECIAL = 6, 7
VOCABULARY = (b"a", b"b", b"ab", b" a", b"ba ", "\u00e9".encode(), b" ", b"<|end|>")


def decode(ids) -> str:
    """As tokenizers do: special tokens have no text, and a space that begins the whole text is left out."""
    text = b"".join(VOCABULARY[i] for i in ids if i != SPECIAL).decode(errors="replace")
    return text[1:] if ids and ids[0] != SPECIAL and VOCABULARY[ids[0]].startswith(b" ") else text


class AllAtOnce:
    """A detokeniser that decodes everything each time."""

    def __init__(self) -> None:
        self._ids: list[int] = []

    def feed(self, token_id: int) -> str:
        before = decode(self._ids)
        self._ids.append(token_id)
        return decode(self._ids)[len(before) :]

    def flush(self) -> str:
        return ""


def answered(ids, stops, start=0):
    """The text that a caller sees, and the offsets and texts of its entries."""
    entries, answer = HeldEntries(start) if stops else WaitingEntries(start), AnswerText(AllAtOnce(), stops)
    shown, placed = "", []
    for token_id in ids:
        text = answer.feed(token_id)
        placed += entries.take(Entry(VOCABULARY[token_id], 0.0), text)
        shown += text
        if answer.stopped:
            break
    tail = answer.finish()
    placed += entries.end(tail, whole=not answer.stopped)
    return shown + tail, [(p.offset - start, p.entry.text_bytes) for p in placed]


@given(
    st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=12).filter(lambda ids: ids[:1] != [SPACE]),
    st.lists(st.text("ab \u00e9", min_size=1, max_size=3), min_size=1, max_size=2),
    st.sampled_from([0, 10]),
)
def test_every_token_whose_text_is_shown_is_where_its_text_begins_and_no_other_is_told(ids, stops, start):
    text, placed = answered(ids, tuple(stops), start)
    expected, at = [], 0
    for number, token_id in enumerate(ids):
        after = len(decode(ids[: number + 1]))
        if token_id != SPECIAL and after > at and at < len(text):
            expected.append((at, VOCABULARY[token_id]))
        at = after
    assert [(offset, own) for offset, own in placed if own != VOCABULARY[SPECIAL]] == expected
    assert [offset for offset, _ in placed] == sorted(offset for offset, _ in placed)


def test_bytes_that_never_become_a_character_do_not_shift_what_follows():
    entries = HeldEntries()
    placed = entries.take(Entry(b"\xf0", 0.0), "") + entries.take(Entry(b"\x9f", 0.0), "")
    placed += entries.take(Entry(b"x", 0.0), "\ufffd\ufffd") + entries.take(Entry(b"y", 0.0), "xy")
    assert [(p.offset, p.entry.text_bytes) for p in placed] == [(0, b"\xf0"), (0, b"\x9f"), (2, b"x"), (3, b"y")]


@pytest.mark.parametrize(
    ("ids", "stop", "text", "placed"),
    [
        ([0, 0, 1], "ab", "a", [(0, b"a")]),
        ([0, 0, 0], "ab", "aaa", [(0, b"a"), (1, b"a"), (2, b"a")]),
        ([3, 1, 0], "xx", "aba", [(0, b" a"), (1, b"b"), (2, b"a")]),
        ([0, SPECIAL, 1], "bb", "ab", [(0, b"a"), (1, b"<|end|>"), (1, b"b")]),
    ],
    ids=["taken back", "the same text twice", "a space left out", "a token without text"],
)
def test_offsets_of_held_text_are_those_of_its_characters(ids, stop, text, placed):
    assert answered(ids, (stop,)) == (text, placed)
