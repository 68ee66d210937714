"""Text is cut into the tokens that the model was trained on."""

from itertools import pairwise

import gguf
import pytest
from tokenizers import Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from expertmesh_forge.errors import SourceError, UnsupportedModel
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_tokenizer import read_chat_settings, read_tokenizer
from models import tiny_gguf as tiny

# Scores say that "ab" is merged before "bc", "bc" before "▁a"; ids say otherwise.
PIECES = {
    "▁": -9.0, "a": -9.1, "b": -9.2, "c": -9.3, "h": -9.4, "▁a": -5.0, "bc": -4.0, "ab": -3.0, "abc": -6.0,
    "cab": -2.5, "▁h": -2.0, "aa": -7.0,
}  # fmt: skip
CONTROL, BYTES = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = [*CONTROL, *BYTES, *PIECES]
SCORES = [0.0] * (len(TOKENS) - len(PIECES)) + list(PIECES.values())
KINDS = [2, 3, 3] + [6] * 256 + [1] * len(PIECES)
TEXTS = ("abc", "aabc cab h", " a  bc", "", "naïve 漢\n", "haaaab</s>abc", "cabcabc")


@pytest.fixture
def sentencepiece(tmp_path):
    def write(kind="llama", **changes):
        path = tmp_path / "spm.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model(kind)
        usual = {
            "add_token_list": TOKENS, "add_token_scores": SCORES, "add_token_types": KINDS,
            "add_bos_token_id": 1, "add_eos_token_id": 2,
        }  # fmt: skip
        for name, value in {**usual, **changes}.items():
            getattr(writer, name)(value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return GgufFile(path)

    return write


def best_first(text: str) -> list[str]:
    """The algorithm as SentencePiece describes it: merge the neighbours with the best score until none make a piece."""
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(PIECES.get(a + b), -i) for i, (a, b) in enumerate(pairwise(symbols))]
        known = [pair for pair in pairs if pair[0] is not None]
        if not known:
            break
        at = -max(known)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    spelled = [[one] if one in PIECES else [f"<0x{byte:02X}>" for byte in one.encode()] for one in symbols]
    return [token for tokens in spelled for token in tokens]


@pytest.mark.parametrize("text", [text for text in TEXTS if text and "</s>" not in text])
def test_scores_decide_which_pieces_are_merged(text, sentencepiece) -> None:
    tokenizer = read_tokenizer(sentencepiece())

    assert tokenizer.encode(text, add_special_tokens=False).tokens == best_first(text)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_from_its_pieces(text, sentencepiece) -> None:
    tokenizer = Tokenizer.from_str(read_tokenizer(sentencepiece()).to_str())
    ids = tokenizer.encode(text, add_special_tokens=False).ids

    assert tokenizer.decode(ids, skip_special_tokens=False).replace("</s> ", "</s>") == text


def test_sentencepiece_texts_begin_with_their_token_unless_the_file_says_otherwise(sentencepiece) -> None:
    file = sentencepiece()
    assert read_tokenizer(file).encode("abc").tokens[0] == "<s>"
    assert read_chat_settings(file).adds_bos

    file = sentencepiece(add_add_bos_token=False)
    assert read_tokenizer(file).encode("abc").tokens == best_first("abc")


def test_no_space_is_put_first_where_the_file_says_so(sentencepiece) -> None:
    tokenizer = read_tokenizer(sentencepiece(add_add_space_prefix=False))

    assert tokenizer.encode(" ab", add_special_tokens=False).tokens == ["▁", "ab"]
    assert tokenizer.decode(tokenizer.encode(" ab").ids) == " ab"


def test_qwen_texts_are_cut_as_its_own_tokenizer_cuts_them(tmp_path) -> None:
    tokenizer = read_tokenizer(GgufFile(tiny.write_gguf(tmp_path / "tiny.gguf", pre_tokenizer="qwen2")))
    vocab = {token: index for index, token in enumerate(tiny.TOKENS)}
    merges = [tuple(merge.split()) for merge in tiny.MERGES]
    own = Qwen2Tokenizer(vocab=vocab, merges=merges)

    for text in ("the thing's 2026\n\n  def f(x):", "e\u0301 the12 漢字 I'LL", "in\u00a0the  "):
        assert tokenizer.encode(text).ids == own.encode(text)


@pytest.mark.parametrize(("setter", "values"), [("add_token_scores", SCORES[:-1]), ("add_token_types", [*KINDS, 1])])
def test_lists_that_do_not_belong_together_are_refused(setter, values, sentencepiece) -> None:
    with pytest.raises(SourceError, match=rf"damaged, .*has {len(values)} entries for {len(TOKENS)} tokens"):
        read_tokenizer(sentencepiece(**{setter: values}))


@pytest.mark.parametrize("damage", [(b"<|im_end", b"\xff|im_end"), (b"h e", b"h \x00")], ids=["a token", "a merge"])
def test_texts_that_were_damaged_are_refused(damage, tmp_path) -> None:
    path = tiny.write_gguf(tmp_path / "tiny.gguf")
    assert damage[0] in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(*damage))

    with pytest.raises(SourceError, match=r"tiny\.gguf is damaged, .*; download it again"):
        read_tokenizer(GgufFile(path))


def test_begins_and_ends_that_no_token_has_are_left_out(sentencepiece) -> None:
    file = sentencepiece(add_bos_token_id=len(TOKENS), add_eos_token_id=len(TOKENS))

    assert (read_chat_settings(file).bos_id, read_chat_settings(file).eos_ids) == (None, ())
    assert read_tokenizer(file).encode("abc").tokens == best_first("abc")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(value, sentencepiece) -> None:
    file = sentencepiece(add_rope_freq_base=value)

    with pytest.raises(SourceError, match=r"'llama\.rope\.freq_base' in spm\.gguf is (nan|inf), not a number"):
        file.real("llama.rope.freq_base")


def test_a_tokenizer_that_is_not_known_is_named(sentencepiece) -> None:
    with pytest.raises(UnsupportedModel, match=r"tokenizer 'bert'.*supported: 'llama', and 'gpt2'"):
        read_tokenizer(sentencepiece(kind="bert"))
