import pytest
from tokenizers import Tokenizer

from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_tokenizer import read_chat_settings, read_tokenizer
from models import tiny_gguf as tiny

TEXTS = (
    "the thing in 2026\n\tdef f(x):  # naïve 漢字 it's",
    "  two  spaces ",
    "",
    "🎉 12.5 %",
    "<|im_start|>user\nin<|im_end|>",
)


@pytest.fixture
def file(tmp_path):
    return GgufFile(tiny.write_gguf(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_from_its_tokens_also_after_saving(file, text):
    tokenizer = Tokenizer.from_str(read_tokenizer(file).to_str())
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_merges_digits_and_control_tokens_are_cut_as_the_model_was_trained(file):
    tokens = read_tokenizer(file).encode("the the 42<|im_end|>").tokens
    assert tokens == ["t", "he", "Ġthe", "Ġ", "4", "2", "<|im_end|>"]


def test_chat_settings_name_every_token_that_ends_an_answer(file):
    chat = read_chat_settings(file)
    assert chat.eos_ids == (2, 0)
    assert chat.bos_id == 1
    assert not chat.adds_bos
    assert chat.chat_template == tiny.TEMPLATE


@pytest.mark.parametrize(("own", "order"), [(0, (0, 2)), (5, (5, 0, 2)), (len(tiny.TOKENS), (0, 2))])
def test_what_the_file_calls_the_end_comes_first(tmp_path, own, order):
    path = tiny.write_gguf(tmp_path / "tiny.gguf", adjust=lambda writer: end_with(writer, own))
    assert read_chat_settings(GgufFile(path)).eos_ids == order


def end_with(writer, token):
    del writer.kv_data[0]["tokenizer.ggml.eos_token_id"]
    writer.add_eos_token_id(token)


def test_an_unknown_pre_tokenizer_is_refused_with_those_that_are_known(tmp_path):
    file = GgufFile(tiny.write_gguf(tmp_path / "tiny.gguf", pre_tokenizer="tekken"))
    with pytest.raises(UnsupportedModel, match=r"'tekken'.*supported.*smollm"):
        read_tokenizer(file)
