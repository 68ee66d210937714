"""GGUF metadata -> a byte-level BPE tokenizer and the chat settings that go with it."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from expertmesh_forge.errors import UnsupportedModel
from expertmesh_forge.gguf_file import GgufFile

__all__ = ["ChatSettings", "read_chat_settings", "read_tokenizer"]

_CONTROL = 3
_USER_DEFINED = 4

_GPT2_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_BYTES_ONLY = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_PRE_TOKENIZERS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _GPT2_SPLIT],
    "gpt-2": [_GPT2_SPLIT],
    "default": [_GPT2_SPLIT],
    "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3_PATTERN), "isolated"), _BYTES_ONLY],
}


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What serving needs beside the tokenizer; `chat_template` is a Jinja2 text or None."""

    chat_template: str | None
    bos_id: int | None
    eos_ids: tuple[int, ...]
    adds_bos: bool


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """Build the tokenizer whose JSON form any `tokenizers` user can load."""
    kind = file.text("tokenizer.ggml.model")
    split = file.text("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in _PRE_TOKENIZERS:
        raise UnsupportedModel(
            f"{file.path.name} uses the tokenizer {kind!r} with the pre-tokenizer {split!r}; "
            f"supported: 'gpt2' with {', '.join(sorted(_PRE_TOKENIZERS))}"
        )
    tokens = file.strings("tokenizer.ggml.tokens")
    pairs = (merge.partition(" ") for merge in file.strings("tokenizer.ggml.merges"))
    merges = [(left, right) for left, _, right in pairs]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[split])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = file.integers("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(_marked(tokens, kinds, _CONTROL))
    tokenizer.add_tokens(_marked(tokens, kinds, _USER_DEFINED))
    return tokenizer


def read_chat_settings(file: GgufFile) -> ChatSettings:
    """Read the chat template and the ids that start and end a text."""
    tokens = file.strings("tokenizer.ggml.tokens")
    bos, template = "tokenizer.ggml.bos_token_id", "tokenizer.chat_template"
    adds = "tokenizer.ggml.add_bos_token"
    return ChatSettings(
        chat_template=file.text(template) if file.has(template) else None,
        bos_id=file.integer(bos) if file.has(bos) else None,
        eos_ids=_end_ids(file, tokens),
        adds_bos=file.has(adds) and file.text(adds) == "True",
    )


def _end_ids(file: GgufFile, tokens: list[str]) -> tuple[int, ...]:
    # Chat models end a turn with one token and a document with another; both must stop output.
    names = ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>")
    ids = {tokens.index(name) for name in names if name in tokens}
    eos = "tokenizer.ggml.eos_token_id"
    return tuple(sorted(ids | ({file.integer(eos)} if file.has(eos) else set())))


def _marked(tokens: list[str], kinds: list[int], kind: int) -> list[AddedToken]:
    return [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, found in zip(tokens, kinds, strict=True)
        if found == kind
    ]
