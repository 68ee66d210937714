"""Text of a growing answer: whole characters, held-back beginnings of stop strings, nothing after one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_controller.gateway.text.codec import TextCodec
from expertmesh_controller.gateway.text.stopping import StopFilter
from expertmesh_controller.gateway.text.streaming import AnswerText
from models import tiny_bundle as tiny


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> TextCodec:
    return TextCodec(Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny"))))


def answer(codec: TextCodec, ids: list[int], *stops: str) -> tuple[list[str], str]:
    text = AnswerText(codec.detokeniser(), stops)
    return [text.feed(i) for i in ids], text.finish()


@pytest.mark.parametrize("text", ["the rain, in Spain", "zoë – 東京 🦆!", "a\n\n  b", "�ok"])
def test_the_pieces_add_up_to_the_text(codec: TextCodec, text: str) -> None:
    pieces, tail = answer(codec, codec.encode(text))
    assert "".join(pieces) + tail == text


def test_a_character_comes_whole_with_its_last_byte(codec: TextCodec) -> None:
    pieces, tail = answer(codec, codec.encode("🦆"))
    assert pieces == ["", "", "", "🦆"]
    assert tail == ""


def test_an_unfinished_character_at_the_end_is_shown_as_broken(codec: TextCodec) -> None:
    pieces, tail = answer(codec, codec.encode("a🦆")[:-1])
    assert pieces[0] == "a"
    assert set(tail) == {"�"}


def test_bytes_that_never_become_a_character_do_not_hold_up_the_rest(codec: TextCodec) -> None:
    broken = codec.encode("é")[1]  # a continuation byte
    pieces, tail = answer(codec, [broken] * 30 + codec.encode("xyz"))
    assert ("".join(pieces) + tail).endswith("xyz")
    assert sum(p != "" for p in pieces) > 3


def test_special_tokens_have_no_text(codec: TextCodec) -> None:
    pieces, tail = answer(codec, [*codec.encode("a"), tiny.IM_START, *codec.encode("b")])
    assert "".join(pieces) + tail == "ab"


def test_a_stop_string_over_token_borders_ends_the_text_before_it(codec: TextCodec) -> None:
    pieces, tail = answer(codec, codec.encode("the end is near"), "nd is")
    assert "".join(pieces) + tail == "the e"


def test_what_might_begin_a_stop_string_is_held_and_let_go(codec: TextCodec) -> None:
    pieces, tail = answer(codec, codec.encode("xyzyx"), "yzw")
    assert (pieces, tail) == (["x", "", "", "yz", "yx"], "")
    pieces, tail = answer(codec, codec.encode("xyz"), "yzw")
    assert ("".join(pieces), tail) == ("x", "yz")


def test_replayed_tokens_lead_to_the_same_text_and_the_same_stop(codec: TextCodec) -> None:
    ids = codec.encode("one two three four")
    whole, tail = answer(codec, ids, "three")
    for cut in range(len(ids)):
        text = AnswerText(codec.detokeniser(), ("three",))
        text.replay(ids[:cut])
        rest = [text.feed(i) for i in ids[cut:]]
        assert "".join(whole[:cut]) + "".join(rest) + text.finish() == "".join(whole) + tail == "one two "
        assert text.stopped


@given(st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_a_filter_never_lets_a_stop_string_or_anything_after_it_out(text: str, stops: list[str], data) -> None:
    filter_, out, rest = StopFilter(tuple(stops)), "", text
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        out, rest = out + filter_.feed(rest[:count]), rest[count:]
    out += filter_.flush()
    assert text.startswith(out)
    assert not any(stop in out for stop in stops)
    assert filter_.stopped == any(stop in text for stop in stops)
    if not filter_.stopped:
        assert out == text


def test_the_path_of_a_bundle_is_all_a_codec_needs(tmp_path: Path) -> None:
    codec = TextCodec(Bundle(tiny.make_tiny_bundle(tmp_path)))
    assert codec.pieces(codec.encode("the a")) == ["th", "e", "Ġ", "a"]
    assert codec.decode(codec.encode("the a")) == "the a"
