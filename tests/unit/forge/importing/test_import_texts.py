"""Tokenizer, chat template and the ids around a text, from whichever file says them."""

import json
from itertools import combinations
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from expertmesh_forge.errors import SourceError
from expertmesh_forge.importing.config import read_json
from expertmesh_forge.importing.tokenizing import TextFiles, read_text_files
from models import tiny_bundle as tiny
from models.altered_checkpoints import alter_config


def texts_of(folder: Path, vocabulary: int = tiny.VOCABULARY) -> TextFiles:
    return read_text_files(folder, read_json(folder / "config.json"), vocabulary)


def say(folder: Path, file: str, **values: object) -> None:
    (folder / file).write_text(json.dumps(values))


def test_the_tokenizer_encodes_as_before(mixtral) -> None:
    got = Tokenizer.from_str(texts_of(mixtral).tokenizer_json)

    want = Tokenizer.from_file(str(mixtral / "tokenizer.json"))
    assert got.encode("hear the stone").ids == want.encode("hear the stone").ids


def test_the_tokenizers_end_comes_first_then_those_of_generation(mixtral) -> None:
    say(mixtral, "generation_config.json", eos_token_id=[7, tiny.EOS])

    assert texts_of(mixtral).eos_ids == (tiny.IM_END, 7, tiny.EOS)


def test_without_generation_settings_the_config_says_what_ends_a_text(mixtral) -> None:
    (mixtral / "generation_config.json").unlink()
    (mixtral / "tokenizer_config.json").unlink()

    found = texts_of(mixtral)

    assert (found.eos_ids, found.bos_id, found.chat_template) == ((tiny.EOS,), 1, None)


def test_what_begins_a_text_is_named_by_the_tokenizer(mixtral) -> None:
    say(mixtral, "tokenizer_config.json", bos_token={"content": "<|im_start|>"})
    assert texts_of(mixtral).bos_id == tiny.IM_START
    say(mixtral, "tokenizer_config.json", bos_token=None)
    assert texts_of(mixtral).bos_id is None


@pytest.mark.parametrize("processor", [None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}])
def test_where_the_program_is_to_put_the_begin_it_is_put_once(mixtral, processor) -> None:
    path = mixtral / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": processor}))
    plain = Tokenizer.from_file(str(path)).encode("hear").ids
    say(mixtral, "tokenizer_config.json", bos_token="<|im_start|>", add_bos_token=True)

    once = texts_of(mixtral).tokenizer_json
    assert Tokenizer.from_str(once).encode("hear").ids == [tiny.IM_START, *plain]
    assert Tokenizer.from_str(once).encode("hear", add_special_tokens=False).ids == plain

    path.write_text(once)
    assert Tokenizer.from_str(texts_of(mixtral).tokenizer_json).encode("hear").ids == [tiny.IM_START, *plain]


def test_ends_beyond_the_models_rows_are_left_out(mixtral) -> None:
    say(mixtral, "generation_config.json", eos_token_id=[7, 1000])

    assert texts_of(mixtral).eos_ids == (tiny.IM_END, 7)


def test_ends_and_begins_below_zero_are_left_out(mixtral) -> None:
    (mixtral / "tokenizer_config.json").unlink()
    say(mixtral, "generation_config.json", eos_token_id=[-1, 7])
    alter_config(mixtral, bos_token_id=-1)

    assert (texts_of(mixtral).eos_ids, texts_of(mixtral).bos_id) == ((7,), None)


def test_a_template_of_its_own_file_wins(mixtral) -> None:
    (mixtral / "chat_template.jinja").write_text("{{ messages[0].content }}")

    assert texts_of(mixtral).chat_template == "{{ messages[0].content }}"


PLACES = {"chat_template.jinja": "j", "tokenizer_config.json": "t", "chat_template.json": "p"}


@pytest.mark.parametrize("files", [*combinations(PLACES, 1), *combinations(PLACES, 2), tuple(PLACES)])
def test_templates_in_several_files_count_in_the_order_of_transformers(mixtral, files: tuple[str, ...]) -> None:
    (mixtral / "tokenizer_config.json").unlink()
    for file in files:
        text = PLACES[file] if file.endswith("jinja") else json.dumps({"chat_template": PLACES[file]})
        (mixtral / file).write_text(text)

    found = texts_of(mixtral).chat_template

    assert found == PLACES[min(files, key=list(PLACES).index)]
    if files != ("chat_template.json",):  # its tokenizers do not read it, its processors do
        assert found == AutoTokenizer.from_pretrained(mixtral).chat_template


def test_of_several_templates_the_default_one_is_taken(mixtral) -> None:
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    say(mixtral, "tokenizer_config.json", chat_template=named)
    assert texts_of(mixtral).chat_template == "d"
    say(mixtral, "tokenizer_config.json", chat_template=named[:1])
    assert texts_of(mixtral).chat_template is None


def test_a_template_may_use_what_serving_gives_it(mixtral) -> None:
    looping = "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}"
    (mixtral / "chat_template.jinja").write_text(looping)

    assert texts_of(mixtral).chat_template == looping


def test_a_template_may_mark_what_an_assistant_said(mixtral) -> None:
    marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    (mixtral / "chat_template.jinja").write_text(marked)

    assert texts_of(mixtral).chat_template == marked


def test_a_template_that_is_no_text_names_its_file(mixtral) -> None:
    (mixtral / "chat_template.jinja").write_bytes(b"\xff\xfe{")

    with pytest.raises(SourceError, match=r"chat_template.jinja is no text in UTF-8"):
        texts_of(mixtral)


@pytest.mark.parametrize("text", ["{% for x %}", "{% generation %}", "{{ x | no_such_filter }}", "{% break %}"])
def test_what_is_no_template_names_its_file(mixtral, text: str) -> None:
    (mixtral / "chat_template.jinja").write_text(text)

    with pytest.raises(SourceError, match=r"chat_template.jinja: the chat template (has an error|does not compile)"):
        texts_of(mixtral)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.json"])
def test_what_is_no_template_names_the_file_that_holds_it(mixtral, file: str) -> None:
    say(mixtral, "tokenizer_config.json")
    say(mixtral, file, chat_template="{% for x %}")

    with pytest.raises(SourceError, match=f"{file}: the chat template has an error"):
        texts_of(mixtral)


def test_a_template_file_that_is_cut_short_is_named(mixtral) -> None:
    (mixtral / "chat_template.json").write_text('{"chat_template": "')

    with pytest.raises(SourceError, match=r"chat_template\.json is not valid JSON"):
        texts_of(mixtral)


def test_a_missing_tokenizer_says_which_file_and_how_to_make_it(mixtral) -> None:
    (mixtral / "tokenizer.json").unlink()

    with pytest.raises(SourceError, match=r"tokenizer.json is missing; .*AutoTokenizer.from_pretrained"):
        texts_of(mixtral)


@pytest.mark.parametrize("text", ["{}", "", "[1, 2]", '{"model": 3}'])
def test_a_file_that_is_no_tokenizer_is_refused(mixtral, text: str) -> None:
    (mixtral / "tokenizer.json").write_text(text)

    with pytest.raises(SourceError, match=r"tokenizer.json is not a tokenizer"):
        texts_of(mixtral)


def test_a_tokenizer_of_another_model_is_refused(mixtral) -> None:
    with pytest.raises(SourceError, match=r"has a token 299, the model only 299 rows"):
        texts_of(mixtral, vocabulary=299)
