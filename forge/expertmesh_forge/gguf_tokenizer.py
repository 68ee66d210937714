"""GGUF metadata -> a tokenizer and the chat settings that go with it."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from expertmesh_forge.errors import SourceError, UnsupportedModel
from expertmesh_forge.gguf_file import GgufFile
from expertmesh_forge.gguf_sentencepiece import sentencepiece_tokenizer

__all__ = ["ChatSettings", "read_chat_settings", "read_tokenizer"]

_KINDS, _SCORES = "tokenizer.ggml.token_type", "tokenizer.ggml.scores"
_CONTROL = 3
_USER_DEFINED = 4

_GPT2_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_BYTES_ONLY = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_PATTERN = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2_PATTERN = rf"{_WORDS}|\p{{N}}|{_REST}"

_PRE_TOKENIZERS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _GPT2_SPLIT],
    "gpt-2": [_GPT2_SPLIT],
    "default": [_GPT2_SPLIT],
    "olmo": [_GPT2_SPLIT],
    "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3_PATTERN), "isolated"), _BYTES_ONLY],
    "qwen2": [pre_tokenizers.Split(Regex(_QWEN2_PATTERN), "isolated"), _BYTES_ONLY],
}
# What the models' own tokenizers do and the file does not say.
_COMPOSED = ("olmo", "qwen2")
_WHOLE_WORDS_FIRST = ("llama-bpe",)


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What serving needs beside the tokenizer; `chat_template` is a Jinja2 text or None.

    The first of `eos_ids` is the one that the model's file calls the end.
    """

    chat_template: str | None
    bos_id: int | None
    eos_ids: tuple[int, ...]
    adds_bos: bool


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """Build the tokenizer whose JSON form any `tokenizers` user can load.

    Raises:
        UnsupportedModel: the file names a tokenizer or a way to cut text that is not known.
        SourceError: its lists do not belong together.

    """
    kind, tokens = file.text("tokenizer.ggml.model"), file.strings("tokenizer.ggml.tokens")
    kinds = file.integers(_KINDS)
    _require_one_each(file, _KINDS, len(kinds), tokens)
    if kind == "llama":
        scores = file.reals(_SCORES)
        _require_one_each(file, _SCORES, len(scores), tokens)
        prefix = file.text("tokenizer.ggml.add_space_prefix", "True") == "True"
        tokenizer = sentencepiece_tokenizer(tokens, scores, kinds, prefix=prefix)
    else:
        tokenizer = _byte_level(file, kind)
    tokenizer.add_special_tokens(_marked(tokens, kinds, _CONTROL))
    tokenizer.add_tokens(_marked(tokens, kinds, _USER_DEFINED))
    chat = read_chat_settings(file)
    if chat.adds_bos and chat.bos_id is not None:
        begin = tokens[chat.bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"], pair=[begin, "$A", begin, "$B"], special_tokens=[(begin, chat.bos_id)]
        )
    return tokenizer


def _require_one_each(file: GgufFile, key: str, count: int, tokens: list[str]) -> None:
    if count != len(tokens):
        raise SourceError(
            f"{file.path.name} is damaged, {key} has {count} entries for {len(tokens)} tokens; download it again"
        )


def _byte_level(file: GgufFile, kind: str) -> Tokenizer:
    split = file.text("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in _PRE_TOKENIZERS:
        raise UnsupportedModel(
            f"{file.path.name} uses the tokenizer {kind!r} with the pre-tokenizer {split!r}; "
            f"supported: 'llama', and 'gpt2' with {', '.join(sorted(_PRE_TOKENIZERS))}"
        )
    vocab = {token: index for index, token in enumerate(file.strings("tokenizer.ggml.tokens"))}
    pairs = (merge.partition(" ") for merge in file.strings("tokenizer.ggml.merges"))
    merges = [(left, right) for left, _, right in pairs]
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=split in _WHOLE_WORDS_FIRST)
    except Exception as error:  # the library raises bare exceptions
        raise SourceError(f"{file.path.name} is damaged, {error}; download it again") from error
    tokenizer = Tokenizer(model)
    if split in _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[split])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def read_chat_settings(file: GgufFile) -> ChatSettings:
    """Read the chat template and the ids that start and end a text."""
    tokens = file.strings("tokenizer.ggml.tokens")
    bos, template = "tokenizer.ggml.bos_token_id", "tokenizer.chat_template"
    by_default = str(file.text("tokenizer.ggml.model", "") == "llama")
    begin = file.integer(bos) if file.has(bos) else None
    return ChatSettings(
        chat_template=file.text(template) if file.has(template) else None,
        bos_id=begin if begin is not None and 0 <= begin < len(tokens) else None,
        eos_ids=_end_ids(file, tokens),
        adds_bos=file.text("tokenizer.ggml.add_bos_token", by_default) == "True",
    )


def _end_ids(file: GgufFile, tokens: list[str]) -> tuple[int, ...]:
    # Chat models end a turn with one token and a document with another; both must stop output.
    names = ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>")
    own = [f"tokenizer.ggml.{which}_token_id" for which in ("eos", "eot")]
    # What the file calls the end comes first: chat templates know that one as `eos_token`.
    ids = [file.integer(key) for key in own if file.has(key)]
    ids += [tokens.index(name) for name in names if name in tokens]
    return tuple(dict.fromkeys(one for one in ids if 0 <= one < len(tokens)))


def _marked(tokens: list[str], kinds: list[int], kind: int) -> list[AddedToken]:
    return [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, found in zip(tokens, kinds, strict=True)
        if found == kind
    ]
