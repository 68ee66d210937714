"""The tokenizer of a checkpoint, its chat template, and the ids that begin and end a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.processors import Sequence, TemplateProcessing

from expertmesh_common.chat_templates import chat_template
from expertmesh_common.errors import CorruptData
from expertmesh_forge.errors import SourceError
from expertmesh_forge.importing.config import CheckpointConfig, read_json

__all__ = ["TextFiles", "read_text_files"]

_HINT = (
    "copy it from the model's page, or write it with transformers: "
    "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
)


@dataclass(frozen=True, slots=True)
class TextFiles:
    """`tokenizer_json` is the text of a `tokenizer.json`, `chat_template` a Jinja2 text.

    The first of `eos_ids` is the one that the tokenizer itself calls the end.
    """

    tokenizer_json: str
    chat_template: str | None
    bos_id: int | None
    eos_ids: tuple[int, ...]


def read_text_files(folder: Path, config: CheckpointConfig, vocabulary: int) -> TextFiles:
    """Read and check what turns text into tokens.

    Raises:
        SourceError: a file is missing or not readable, or the tokenizer knows more tokens than the model's
            `vocabulary` of rows.

    """
    tokenizer = _read_tokenizer(folder / "tokenizer.json")
    about, generation = _optional(folder / "tokenizer_config.json"), _optional(folder / "generation_config.json")
    most = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if most >= vocabulary:
        raise SourceError(
            f"{folder / 'tokenizer.json'} has a token {most}, the model only {vocabulary} rows: "
            "they do not belong together; fetch both again"
        )
    begin = next((one for one in _begin(tokenizer, about, config) if 0 <= one < vocabulary), None)
    if begin is not None and about.values.get("add_bos_token") is True:
        _begin_texts_with(tokenizer, begin)
    return TextFiles(
        tokenizer_json=tokenizer.to_str(),
        chat_template=_chat_template(folder, about),
        bos_id=begin,
        eos_ids=tuple(one for one in _ends(tokenizer, about, generation, config) if 0 <= one < vocabulary),
    )


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise SourceError(f"{path} is missing; {_HINT}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise SourceError(f"{path} is not a tokenizer: {error}; {_HINT}") from error


def _optional(path: Path) -> CheckpointConfig:
    return read_json(path) if path.is_file() else CheckpointConfig(path, {})


def _chat_template(folder: Path, about: CheckpointConfig) -> str | None:
    path = folder / "chat_template.jinja"
    if not path.is_file():
        return _template_inside(about, _optional(folder / "chat_template.json"))
    try:
        return _parsing(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is no text in UTF-8: {error}; fetch it again") from error


def _template_inside(*files: CheckpointConfig) -> str | None:
    """The first template that one of several JSON files holds.

    The tokenizer's own comes first: transformers' tokenizers read no other, and what is served is text.
    """
    each = ((_template_of(file.values.get("chat_template")), file.path) for file in files)
    return next((_parsing(text, path) for text, path in each if text is not None), None)


def _parsing(text: str, origin: Path) -> str:
    try:
        chat_template(text)
    except CorruptData as error:
        raise SourceError(f"{origin}: {error}") from error
    return text


def _template_of(value: object) -> str | None:
    """Tokenizers with several templates list them by name; chat is the default one."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        by_name = {one.get("name"): one.get("template") for one in value if isinstance(one, dict)}
        default = by_name.get("default")
        return default if isinstance(default, str) else None
    return None


def _begin(tokenizer: Tokenizer, about: CheckpointConfig, config: CheckpointConfig) -> tuple[int, ...]:
    if "bos_token" not in about.values:
        return config.integers("bos_token_id")
    named = _named(tokenizer, about, "bos_token")
    return () if named is None else (named,)


def _begin_texts_with(tokenizer: Tokenizer, begin: int) -> None:
    """Some checkpoints leave it to the program that loads them to put the token before a text."""
    if tokenizer.encode("a").ids[:1] == [begin]:
        return
    name = tokenizer.id_to_token(begin)
    pair = [name, "$A", f"{name}:1", "$B:1"]
    single = TemplateProcessing(single=[name, "$A"], pair=pair, special_tokens=[(name, begin)])
    before = tokenizer.post_processor
    tokenizer.post_processor = single if before is None else Sequence([before, single])


def _ends(
    tokenizer: Tokenizer, about: CheckpointConfig, generation: CheckpointConfig, config: CheckpointConfig
) -> tuple[int, ...]:
    named = _named(tokenizer, about, "eos_token")
    # What generation says is what the model's authors meant to stop at; the config is older and often less.
    listed = generation.integers("eos_token_id") or config.integers("eos_token_id")
    both = (() if named is None else (named,)) + listed
    return tuple(dict.fromkeys(both))


def _named(tokenizer: Tokenizer, about: CheckpointConfig, key: str) -> int | None:
    value = about.values.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    found = tokenizer.token_to_id(text) if isinstance(text, str) else None
    return None if found is None else int(found)
